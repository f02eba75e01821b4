"""The results of a run, and of a comparison, as sentences and rows of tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from peftkit.metrics import METRICS, UNKNOWN, count, duration, in_group, plain, share, size, small
from peftkit.recipe.advice import shown
from peftkit.recipe.fields import set_fields
from peftkit.recipe.methods import title_of
from peftkit.report.content import RunContent
from peftkit.runs.comparison import Comparison, Entry, Statistic

__all__ = [
    "EVALUATION_COLUMNS", "Row", "Rows", "Table", "audit_table", "comparison_table", "cost_table", "evaluations",
    "expected_rows", "groups", "hardware", "headline", "key_figures", "notes", "runs_table", "scores", "sentence",
    "sources", "statistic", "tried_rows", "verdict",
]  # fmt: skip

TIMES = "\N{MULTIPLICATION SIGN}"
_EVALUATED = ("eval_loss", "perplexity")
EVALUATION_COLUMNS = ["step", "epoch", *(METRICS[name].label for name in _EVALUATED), "after"]
Row = tuple[str, str]
Rows = list[Row]


def sentence(run: RunContent) -> str:
    """What the run did, in one sentence."""
    manifest, metrics = run.manifest, run.manifest.metrics
    base = manifest.base.get("model") or "a new model"
    method = title_of(manifest.method)
    if metrics.trainable_parameters is None:
        return f"{method} of {base}: the run is {manifest.status}."
    taught = f"{count(metrics.trainable_parameters)} of {count(metrics.total_parameters)} parameters"
    if metrics.trainable_parameters == metrics.total_parameters:
        taught = f"all {count(metrics.total_parameters)} parameters"
    text = f"{method} trained {taught} of {base}"
    before, after = metrics.base_perplexity, metrics.perplexity
    if after is None:
        return f"{text}." if manifest.status == "finished" else f"{text}; the run is {manifest.status}."
    if before is None:
        return f"{text}; perplexity on held-out data is {small(after)}."
    way = f"{'fell' if after < before else 'rose'} from {small(before)} to {small(after)}"
    if small(before) == small(after):
        way = f"stayed at {small(after)}"
    return f"{text}; perplexity on held-out data {way}."


def key_figures(run: RunContent) -> Rows:
    """Every metric of the run itself. Of those that only some runs have, the ones that are known."""
    values = {**asdict(run.manifest.metrics), "output_bytes": run.output_bytes}
    rows = [
        (metric.label, metric.text(values.get(name)))
        for name, metric in in_group("quality", "cost", "run").items()
        if values.get(name) or metric.group != "run"
    ]
    trained = share(values["trainable_parameters"], values["total_parameters"])
    place = [label for label, _ in rows].index(METRICS["trainable_parameters"].label) + 1
    return [*rows[:place], ("of all parameters", trained), *rows[place:]]


def groups(run: RunContent) -> dict[str, Rows]:
    """The fields that the recipe sets, by section, and what the run made of them."""
    fields = set_fields(run.recipe)
    found = {home: [(name, shown(value)) for name, value in values.items()] for home, values in fields.items()}
    if run.manifest.precision:
        computed = [("precision", run.manifest.precision), ("processes", count(run.manifest.world_size))]
        found["as trained"] = [*_batch(run), *computed]
    return found


def notes(run: RunContent) -> list[str]:
    """What happened on the way."""
    return [*_batch_notes(run), *(_resumed(each) for each in run.manifest.resumed)]


def evaluations(run: RunContent) -> list[tuple[str, ...]]:
    """Step, epoch, validation loss and perplexity of each evaluation."""
    rows = []
    for line in run.evaluations:
        measured = (METRICS[name].text(line.get(name)) for name in _EVALUATED)
        rows.append((count(line["step"]), small(line.get("epoch")), *measured, duration(line.get("seconds"))))
    return rows


def scores(run: RunContent) -> Iterator[Row]:
    """How good what it writes is, where that was measured."""
    for name, metric in in_group("completions").items():
        if name in run.scores:
            yield metric.label, metric.text(run.scores[name])
    if run.scores:
        counted = count(run.scores["prompts"]), count(run.scores["references"])
        yield "measured on", "{} completions, {} references".format(*counted)


def audit_table(audit: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What the data is, counted, from an audit as JSON: the head and the lines of a table."""
    columns = [_counted(audit[name]) for name in ("train", "validation") if audit[name]]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    if audit["validation"]:
        rows.append(["trained on too (leak)", "", count(audit["leak"]["documents"])])
        rows.append(["  share of the tokens", "", f"{audit['leak']['share']:.1%}"])
    return ["data", "train", "validation"][: len(columns) + 1], rows


def sources(audit: dict[str, Any]) -> Rows:
    """Where training and validation data come from, and in which format."""
    found = []
    for name in ("train", "validation"):
        held_out = (audit[name] or {}).get("held_out")
        if held_out:
            found.append((name, f"{held_out:.3g} of the training documents, held out"))
        elif audit[name]:
            for source in audit[name]["sources"]:
                found.append((name, f"{source['name']}, format {source['format']}"))
                found += [("", line) for line in source_notes(source)]
    return found


def source_notes(source: dict[str, Any]) -> list[str]:
    """What is to be known of a source's rows and documents; runs of older versions have recorded less."""
    notes = []
    if source.get("end_tokens"):
        notes.append(f"generation stops at {' or '.join(source['end_tokens'])}")
    if source.get("ignored"):
        columns = ", ".join(f"{name} in {count(rows)}" for name, rows in source["ignored"].items())
        notes.append(f"columns that are not used, with rows that have a value: {columns}")
    return notes + [f"{count(documents)} documents {note}" for note, documents in (source.get("notes") or {}).items()]


def hardware(record: dict[str, Any]) -> Rows:
    """The machine that trained."""
    return [
        (name.removesuffix("_bytes").replace("_", " "), size(value) if name.endswith("_bytes") else plain(value))
        for name, value in record.items()
        if value is not None
    ]


def _batch(run: RunContent) -> Iterator[Row]:
    """What one optimizer step sees."""
    training = run.recipe.get("training") or {}
    rows, steps = training.get("per_device_train_batch_size"), training.get("gradient_accumulation_steps")
    if rows and steps:
        processes = run.manifest.world_size
        shared = f", shared by {processes} processes" if processes > 1 else ""
        yield "batch of a step", f"{rows} {TIMES} {steps} accumulated = {rows * steps}{shared}"


def _batch_notes(run: RunContent) -> Iterator[str]:
    sizes = run.manifest.auto_batch
    if sizes and "evaluation" in sizes:
        rows, used_rows = sizes["evaluation"]
        yield f"The recipe's evaluation of {rows} rows at a time did not fit into memory; {used_rows} did."
    if sizes and sizes["recipe"] != sizes["used"]:
        (rows, steps), (used_rows, used_steps) = sizes["recipe"], sizes["used"]
        did = f"{used_rows} {TIMES} {used_steps} did, which is the same batch for the optimizer"
        yield f"The recipe's batches of {rows} {TIMES} {steps} did not fit into memory; {did}."


def _resumed(resumed: dict[str, Any]) -> str:
    text = f"Resumed from step {count(resumed['step'])}"
    if resumed.get("passed_over"):
        text += f", past checkpoints that were not sound: {', '.join(map(str, resumed['passed_over']))}"
    changes = []
    for change in resumed.get("changes") or []:  # that were allowed, whatever fields they have
        known = change.items() if isinstance(change, dict) else ()
        parts = ", ".join(f"{name.replace('_', ' ')} {plain(value)}" for name, value in known if value is not None)
        changes.append(parts if isinstance(change, dict) else str(change))
    return f"{text}; changed since: {'; '.join(changes)}." if changes else f"{text}."


def _counted(source: dict[str, Any]) -> dict[str, str]:
    counts, quantiles = source["counts"], source["length_quantiles"]
    return {
        "documents": count(counts["documents"]),
        "  seen before (duplicates)": count(source["duplicates"]),
        "  split at max_length": f"{count(counts['split_documents'])} ({source['split']:.1%})",
        "  cut at max_length": f"{count(counts['cut_documents'])} ({source['cut']:.1%})",
        "  no token in the loss, left out": count(counts["untaught_documents"]),
        "  whose end is in the loss": f"{source['ends_taught']:.1%}",
        "rows left out, empty": count(counts["empty_rows"]),
        "rows left out, bad": count(counts["bad_rows"]),
        "tokens a document, 50% / 90% / 99%": f"{quantiles['50%']} / {quantiles['90%']} / {quantiles['99%']}",
        "  longest": count(quantiles["longest"]),
        "sequences": count(counts["sequences"]) + (", packed" if source["packed"] else ""),
        "tokens": count(counts["tokens"]),
        "  lost by cutting": count(counts["cut_tokens"]),
        "  in the loss": f"{count(counts['label_tokens'])} ({source['taught']:.1%})",
        "slots that hold a token": f"{source['filled']:.1%}",
    }


Table = tuple[list[str], list[list[str]]]
"""The head, and the lines."""


def headline(comparison: Comparison) -> str:
    """Which entry is best, and of which the difference is more than noise."""
    by = METRICS[comparison.by].label
    entries = comparison.entries
    best = next((entry for entry in entries if entry.against_best and entry.against_best.verdict == "best"), None)
    if best is None:
        number = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
        return f"{number} compared by {by}; the best is not known."
    seeds = len(comparison.seeds)
    extreme = "highest" if comparison.higher_is_better else "lowest"
    measured = statistic(comparison.by, best.metrics.get(comparison.by))
    text = f"{best.name} has the {extreme} {by}, {measured}{f' over {seeds} seeds' if seeds > 1 else ''}."
    verdicts = [(entry.name, entry.against_best.verdict) for entry in entries if entry.against_best]
    worse, noise, unknown = ([name for name, of in verdicts if of == each] for each in ("worse", "noise", "unknown"))
    if worse:
        text += f" {_listed(worse)} {'is' if len(worse) == 1 else 'are'} worse by more than noise."
    if noise:
        text += f" The difference to {_listed(noise)} may be noise."
    if unknown:
        text += f" One seed says nothing about noise, so {_listed(unknown)} may be as good."
    return text


def comparison_table(comparison: Comparison) -> Table:
    """How good each entry is: the head and a line for each."""
    known = {name for entry in comparison.entries for name in entry.metrics}
    columns = [name for name in dict.fromkeys((comparison.by, "perplexity", *in_group("completions"))) if name in known]
    lines = [["", *(METRICS[name].label for name in columns)]]
    lines += [[entry.name, *(_cell(name, entry) for name in columns)] for entry in comparison.entries]
    for line, said in zip(lines, ["verdict", *map(verdict, comparison.entries)], strict=True):
        line.insert(2, said)
    return lines[0], lines[1:]


def cost_table(comparison: Comparison) -> Table:
    """What each entry that was trained cost."""
    trained = [entry for entry in comparison.entries if entry.method]
    columns = [name for name in in_group("cost") if any(name in entry.metrics for entry in trained)]
    lines = [[entry.name, *(_cell(name, entry) for name in columns)] for entry in trained]
    return ["", *(METRICS[name].label for name in columns)], lines


def verdict(entry: Entry) -> str:
    """How an entry compares with the best one."""
    against = entry.against_best
    if against is None:
        return "untouched" if entry.method is None else ""
    if against.verdict == "best":
        return "best"
    words = {"noise": "may be noise", "worse": "worse", "unknown": "one seed"}[against.verdict]
    if against.low is None or against.high is None:
        return f"{words}: {against.difference:+.3g}"
    return f"{words}: {against.difference:+.3g}\n({against.low:+.3g} to {against.high:+.3g})"


def expected_rows(comparison: Comparison) -> list[list[str]]:
    """What was expected of which entry, what came, and by how much it is not so."""
    rows = []
    for each in comparison.expected:
        if each.value is None or each.distance is None:
            result = "not measured"
        elif each.distance == 0:
            result = "as expected"
        else:
            result = f"{abs(each.distance):.3g} too {'low' if each.distance < 0 else 'high'}"
        metric = METRICS[each.metric]
        rows.append([each.entry, metric.label, each.band, metric.text(each.value), result, each.source])
    return rows


def tried_rows(comparison: Comparison) -> list[list[str]]:
    """The learning rates that were tried, with what came of each."""
    rows = []
    for each in comparison.tried:
        entry = str(each.get("entry") or each.get("method") or "")
        loss = "did not finish" if each.get("eval_loss") is None else small(each["eval_loss"])
        rows.append([entry, str(each["learning_rate"]), loss, "chosen" if each.get("chosen") else ""])
    return rows


def runs_table(runs: list[RunContent]) -> Table:
    """Several runs next to each other, a line for each."""
    metrics = in_group("quality", "cost")
    rows = []
    for run in runs:
        values = {**asdict(run.manifest.metrics), "output_bytes": run.output_bytes}
        method = title_of(run.manifest.method)
        figures = (each.text(values[name]) for name, each in metrics.items())
        rows.append([run.name, method, run.manifest.status, *figures])
    return ["", "method", "status", *(metric.label for metric in metrics.values())], rows


def statistic(name: str, value: Statistic | None) -> str:
    """A mean, with its error where there is more than one seed."""
    return UNKNOWN if value is None else METRICS[name].mean_text(value.mean, value.standard_error)


def _cell(name: str, entry: Entry) -> str:
    return statistic(name, entry.metrics[name]) if name in entry.metrics else "-"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
