"""The results as JSON, with everything, and as Markdown, to be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.goals import Goal
from benchmarks.gpu.harness import Figure, Outcome, Row

__all__ = ["folder_name", "in_order", "markdown", "read_parts", "write_results"]


def write_results(
    folder: Path, outcomes: Sequence[Outcome], goals: Sequence[Goal], machine: Mapping[str, Any], **about: Any
) -> None:
    """Write `gpu.json` and `gpu.md`, each whole or as it was before."""
    values = {
        **about,
        "machine": dict(machine),
        "parts": [asdict(outcome) for outcome in outcomes],
        "goals": [asdict(goal) for goal in goals],
    }
    _write(folder / "gpu.json", json.dumps(values, indent=1) + "\n")
    _write(folder / "gpu.md", markdown(outcomes, goals, machine, **about))


def read_parts(folder: Path, machine: Mapping[str, Any]) -> list[Outcome]:
    """The parts that a folder has of an earlier benchmark of the same machine with the same libraries."""
    path = folder / "gpu.json"
    if not path.is_file():
        return []
    values = json.loads(path.read_text(encoding="utf-8"))
    if any(values["machine"][name] != machine[name] for name in ("name", "python", "versions")):
        return []
    return [Outcome(**{**part, "rows": [Row(**row) for row in part["rows"]]}) for part in values["parts"]]


def in_order(outcomes: Sequence[Outcome], names: Sequence[str]) -> list[Outcome]:
    """The last outcome of each part, in the order of `names`."""
    newest = {outcome.part: outcome for outcome in outcomes}
    return [newest[name] for name in names if name in newest]


def folder_name(machine: Mapping[str, Any], *, smoke: bool) -> str:
    """The card and the date, as a name of a folder."""
    card = re.sub(r"[^a-z0-9]+", "-", str(machine["name"]).lower()).strip("-")
    return f"{card}-{machine['date']}{'-smoke' if smoke else ''}"


def markdown(
    outcomes: Sequence[Outcome], goals: Sequence[Goal], machine: Mapping[str, Any], *, smoke: bool, seconds: float
) -> str:
    """A summary of the parts, a table for each, and the goals."""
    return "\n".join(_lines(outcomes, goals, machine, smoke=smoke, seconds=seconds)) + "\n"


def _lines(
    outcomes: Sequence[Outcome], goals: Sequence[Goal], machine: Mapping[str, Any], *, smoke: bool, seconds: float
) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    yield f"# {machine['name']}, {machine['date']}\n"
    if smoke:
        yield "Tiny shapes, to try the benchmark itself: no figure says anything about the card.\n"
    memory = f"{machine['memory_bytes'] / 1e9:.0f} GB"
    yield f"{machine['device']}, {memory}, {machine['cpu_cores']} CPU cores, Python {machine['python']}, {versions}."
    yield f"{seconds:.0f} s in all.\n"
    yield "| part | result | seconds |"
    yield "|---|---|--:|"
    for outcome in outcomes:
        yield f"| {_cell(outcome.title)} | {_result(outcome)} | {outcome.seconds:.0f} |"
    for outcome in outcomes:
        yield from _part(outcome)
    yield "\n## Goals\n"
    yield "| goal | measured | |"
    yield "|---|---|---|"
    for goal in goals:
        yield f"| {_cell(goal.goal)} | {_cell(goal.measured)} | {goal.status} |"


def _result(outcome: Outcome) -> str:
    return _cell(f"{outcome.status}: {outcome.reason}" if outcome.reason else outcome.status)


def _part(outcome: Outcome) -> Iterator[str]:
    yield f"\n## {outcome.title}\n"
    if outcome.reason:
        yield f"{outcome.status}: {_cell(outcome.reason)}\n"
    if not outcome.rows:
        return
    names = list(dict.fromkeys(name for row in outcome.rows for name in row.figures))
    columns = [name for name in names if any(row.figures.get(name) is not None for row in outcome.rows)]
    yield f"| | {' | '.join([*columns, 'result', ''])} |"
    yield f"|---|{'--:|' * len(columns)}---|---|"
    for row in outcome.rows:
        cells = [shown(row.figures.get(name)) for name in columns]
        yield f"| {' | '.join([_cell(row.what), *cells, _verdict(row), _cell(row.note)])} |"


def _verdict(row: Row) -> str:
    return {True: "passed", False: "failed", None: ""}[row.passed]


def shown(value: Figure) -> str:
    """A figure in a cell: four digits, or fewer where they are enough."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return _cell(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
