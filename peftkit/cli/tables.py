"""The tables that several commands print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftkit import console
from peftkit.errors import TargetError
from peftkit.metrics import METRICS, in_group
from peftkit.planning.hardware import Decision
from peftkit.runs.comparison import Comparison, Entry, Expected
from peftkit.runs.verify import Check

__all__ = ["print_comparison", "print_decisions", "tell_checks", "verdict_on"]

_WORDS = {True: "yes", False: "NO", None: "unknown"}


def print_comparison(comparison: Comparison, title: str) -> None:
    """The table, what is to be said of it, and what was expected."""
    measured = {name for entry in comparison.entries for name in entry.metrics}
    texts = [name for name, metric in in_group("completions").items() if metric.in_terminal or name == comparison.by]
    columns = [name for name in ("perplexity", *texts) if name in measured]
    head = ["", *(METRICS[name].label for name in columns), "against the best"]
    rows = [[*_cells(entry, columns), _against(entry, comparison.by)] for entry in comparison.entries]
    console.print_table(title, head, rows, numeric=True)
    console.print_text("")
    costs = list(in_group("cost"))
    trained = [list(_cells(entry, costs)) for entry in comparison.entries if entry.method]
    console.print_table(None, ["", *(METRICS[name].label for name in costs)], trained, numeric=True)
    if any(len(entry.runs) > 1 for entry in comparison.entries):
        console.print_text(f"± is the standard error over the seeds {', '.join(map(str, comparison.seeds))}.")
    for warning in comparison.warnings:
        console.warning(warning)
    for expected in comparison.expected:
        console.print_text(verdict_on(expected))


def _cells(entry: Entry, columns: list[str]) -> Iterator[str]:
    yield entry.name
    for name in columns:
        found = entry.metrics.get(name)
        yield METRICS[name].mean_text(found.mean, found.standard_error) if found else ""


def _against(entry: Entry, by: str) -> str:
    against = entry.against_best
    if against is None or against.verdict == "best":
        return "best" if against else ""
    words = {"noise": ", may be noise", "worse": ", more than noise", "unknown": ""}
    return f"{against.difference:+.3g} {by}{words[against.verdict]}"


def verdict_on(expected: Expected) -> str:
    """One line on what the recipe expects and what came."""
    what = f"{expected.entry}: {expected.metric} {expected.band} ({expected.source})"
    if expected.value is None or expected.distance is None:
        return f"not measured: {what}"
    if expected.distance == 0:
        return f"as expected, {expected.value:.4g}: {what}"
    side = "below" if expected.distance < 0 else "above"
    return f"NOT as expected, {expected.value:.4g} is {abs(expected.distance):.3g} {side}: {what}"


def tell_checks(place: Path, head: dict[str, Any], title: str | None, checks: Sequence[Check], as_json: bool) -> None:
    """Print a line for each check, or all of them after `head` as JSON.

    Raises:
        TargetError: one failed.
    """
    failed = [check for check in checks if check.passed is False]
    if as_json:
        console.print_json({**head, "sound": not failed, "checks": [asdict(check) for check in checks]})
    else:
        rows = [[check.name, _WORDS[check.passed], check.detail] for check in checks]
        console.print_table(title, ["part" if title else "check", "sound", ""], rows)
    if failed:
        first = failed[0]
        remedy = "Checkpoints that are not sound are passed over by --resume."
        raise TargetError(
            f"is not sound: {first.name}: {first.detail.rstrip('.')}.",
            where=str(place),
            remedy=remedy if first.name.startswith("checkpoints/") else None,
        )


def print_decisions(decisions: Sequence[Decision[Any]]) -> None:
    """A table of what is chosen, and why."""
    rows = [[decision.name, decision.text, decision.reason] for decision in decisions]
    console.print_table(None, ["decision", "choice", "why"], rows)
