"""The results of a run, as sentences and rows of tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from peftkit.metrics import METRICS, count, duration, in_group, plain, share, size, small
from peftkit.recipe.advice import shown
from peftkit.recipe.explain import set_fields
from peftkit.recipe.methods import title_of
from peftkit.report.content import RunContent

__all__ = [
    "EVALUATION_COLUMNS",
    "Row",
    "Rows",
    "audit_table",
    "evaluations",
    "groups",
    "hardware",
    "key_figures",
    "notes",
    "scores",
    "sentence",
    "sources",
]

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
    return [
        (
            count(line["step"]),
            small(line.get("epoch")),
            *(METRICS[name].text(line.get(name)) for name in _EVALUATED),
            duration(line.get("seconds")),
        )
        for line in run.evaluations
    ]


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
    changes = [_change(change) for change in resumed.get("changes") or []]
    return f"{text}; changed since: {'; '.join(changes)}." if changes else f"{text}."


def _change(change: Any) -> str:
    """A difference that was allowed, whatever fields it has."""
    if not isinstance(change, dict):
        return str(change)
    return ", ".join(f"{name.replace('_', ' ')} {plain(value)}" for name, value in change.items() if value is not None)


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
