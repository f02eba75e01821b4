"""What a comparison found, as sentences and rows of tables."""

from __future__ import annotations

from dataclasses import asdict

from peftkit.metrics import METRICS, UNKNOWN, in_group, small
from peftkit.recipe.methods import title_of
from peftkit.report.content import ComparisonContent, RunContent
from peftkit.runs.comparison import Comparison, Entry, Statistic

__all__ = [
    "Table",
    "comparison_table",
    "cost_table",
    "expected_rows",
    "headline",
    "missing",
    "runs_table",
    "statistic",
    "tried_rows",
    "verdict",
]

Table = tuple[list[str], list[list[str]]]
"""The head, and the lines."""


def headline(comparison: Comparison) -> str:
    """Which entry is best, and of which the difference is more than noise."""
    by = METRICS[comparison.by].label
    best = next(
        (entry for entry in comparison.entries if entry.against_best and entry.against_best.verdict == "best"), None
    )
    if best is None:
        return f"{_number(len(comparison.entries), 'entry', 'entries')} compared by {by}; the best is not known."
    seeds = len(comparison.seeds)
    extreme = "highest" if comparison.higher_is_better else "lowest"
    measured = statistic(comparison.by, best.metrics.get(comparison.by))
    text = f"{best.name} has the {extreme} {by}, {measured}{f' over {seeds} seeds' if seeds > 1 else ''}."
    told = {
        "worse": _named(comparison, "worse"),
        "noise": _named(comparison, "noise"),
        "unknown": _named(comparison, "unknown"),
    }
    if told["worse"]:
        text += f" {_listed(told['worse'])} {'is' if len(told['worse']) == 1 else 'are'} worse by more than noise."
    if told["noise"]:
        text += f" The difference to {_listed(told['noise'])} may be noise."
    if told["unknown"]:
        text += f" One seed says nothing about noise, so {_listed(told['unknown'])} may be as good."
    return text


def comparison_table(comparison: Comparison) -> Table:
    """How good each entry is: the head and a line for each."""
    known = {name for entry in comparison.entries for name in entry.metrics}
    columns = [name for name in dict.fromkeys((comparison.by, "perplexity", *in_group("completions"))) if name in known]
    head = ["", *(METRICS[name].label for name in columns)]
    lines = [[entry.name, *(_cell(name, entry) for name in columns)] for entry in comparison.entries]
    verdicts = ["verdict", *(verdict(entry) for entry in comparison.entries)]
    head, *lines = [[*line[:2], said, *line[2:]] for line, said in zip([head, *lines], verdicts, strict=True)]
    return head, lines


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
    return [
        [
            str(each.get("entry") or each.get("method") or ""),
            str(each["learning_rate"]),
            "did not finish" if each.get("eval_loss") is None else small(each["eval_loss"]),
            "chosen" if each.get("chosen") else "",
        ]
        for each in comparison.tried
    ]


def runs_table(runs: list[RunContent]) -> Table:
    """Several runs next to each other, a line for each."""
    metrics = in_group("quality", "cost")
    rows = []
    for run in runs:
        values = {**asdict(run.manifest.metrics), "output_bytes": run.output_bytes}
        method = title_of(run.manifest.method)
        rows.append(
            [run.name, method, run.manifest.status, *(each.text(values[name]) for name, each in metrics.items())]
        )
    return ["", "method", "status", *(metric.label for metric in metrics.values())], rows


def statistic(name: str, value: Statistic | None) -> str:
    """A mean, with its error where there is more than one seed."""
    return UNKNOWN if value is None else METRICS[name].mean_text(value.mean, value.standard_error)


def missing(content: ComparisonContent) -> list[str]:
    """A warning for each run whose folder is gone."""
    return [f"{name}: its folder is not there, so this page has only its numbers." for name in content.missing]


def _cell(name: str, entry: Entry) -> str:
    return statistic(name, entry.metrics[name]) if name in entry.metrics else "-"


def _named(comparison: Comparison, said: str) -> list[str]:
    entries = comparison.entries
    return [entry.name for entry in entries if entry.against_best and entry.against_best.verdict == said]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(value: int, one: str, more: str) -> str:
    return f"{value} {one if value == 1 else more}"
