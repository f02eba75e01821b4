"""The tables that several commands print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftkit import console
from peftkit.errors import TargetError
from peftkit.planning.hardware import Decision
from peftkit.recipe.evidence import TEXT_METRICS
from peftkit.runs.comparison import Comparison, Entry, Expected, Statistic
from peftkit.runs.verify import Check

__all__ = ["print_checks", "print_comparison", "print_decisions", "refuse", "verdict_on"]

_WORDS = {True: "yes", False: "NO", None: "unknown"}
_NAMES = {"exact_match": "exact match", "bleu": "BLEU", "chrf": "chrF", "ter": "TER", "rouge_l": "ROUGE-L"}
_SHOWN = ("exact_match", "bleu", "rouge_l")
"""Of what is measured of completions; the others are in the report and in `--json`."""


def print_comparison(comparison: Comparison, title: str) -> None:
    """The table, what is to be said of it, and what was expected."""
    measured = {name for entry in comparison.entries for name in entry.metrics}
    texts = [name for name in TEXT_METRICS if name in measured and name in (*_SHOWN, comparison.by)]
    columns = ["", "perplexity", *(_NAMES[name] for name in texts), "against the best"]
    rows = [list(_quality(entry, texts, comparison.by)) for entry in comparison.entries]
    console.print_table(title, columns, rows, numeric=True)
    console.print_text("")
    trained = [list(_cost(entry)) for entry in comparison.entries if entry.method]
    console.print_table(None, ["", "trained", "tokens/s", "seconds", "peak memory", "file"], trained, numeric=True)
    if any(len(entry.runs) > 1 for entry in comparison.entries):
        console.print_text(f"± is the standard error over the seeds {', '.join(map(str, comparison.seeds))}.")
    for warning in comparison.warnings:
        console.warning(warning)
    for expected in comparison.expected:
        console.print_text(verdict_on(expected))


def _quality(entry: Entry, texts: Sequence[str], by: str) -> Iterator[str]:
    yield entry.name
    yield _with_error(entry.metrics.get("perplexity"), "#.4g")
    for name in texts:
        yield _with_error(entry.metrics.get(name), ".3f" if name == "exact_match" else ".1f")
    yield _against(entry, by)


def _cost(entry: Entry) -> Iterator[str]:
    metrics = entry.metrics
    yield entry.name
    for name in ("trainable_parameters", "tokens_per_second", "train_seconds"):
        yield _whole(metrics.get(name))
    for name in ("peak_memory_bytes", "output_bytes"):
        yield console.size(int(metrics[name].mean)) if name in metrics else ""


def _whole(statistic: Statistic | None) -> str:
    return f"{statistic.mean:,.0f}" if statistic else ""


def _with_error(statistic: Statistic | None, form: str) -> str:
    if statistic is None:
        return ""
    error = f" ± {statistic.standard_error:.2g}" if statistic.standard_error is not None else ""
    return f"{statistic.mean:{form}}{error}"


def _against(entry: Entry, by: str) -> str:
    against = entry.against_best
    if against is None:
        return ""
    if against.verdict == "best":
        return "best"
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


def print_checks(title: str | None, heading: str, checks: Sequence[Check]) -> None:
    """A table with a line for each check."""
    rows = [[check.name, _WORDS[check.passed], check.detail] for check in checks]
    console.print_table(title, [heading, "sound", ""], rows)


def refuse(place: Path, failed: Sequence[Check], remedy: str | None = None) -> None:
    """Leave with status 2 if a check failed.

    Raises:
        TargetError: one did.
    """
    if failed:
        first = failed[0]
        raise TargetError(f"is not sound: {first.name}: {first.detail.rstrip('.')}.", where=str(place), remedy=remedy)


def print_decisions(decisions: Sequence[Decision[Any]]) -> None:
    """A table of what is chosen, and why."""
    rows = [[decision.name, decision.text, decision.reason] for decision in decisions]
    console.print_table(None, ["decision", "choice", "why"], rows)
