"""What a report is about: a run or a comparison, as it is in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftkit.errors import RecipeError, TargetError
from peftkit.recipe.document import parse_document
from peftkit.runs.comparison import Comparison, Entry
from peftkit.runs.folder import RunFolder, is_held
from peftkit.runs.manifest import RunManifest
from peftkit.storage import read_json

__all__ = ["ComparisonContent", "LayerUpdate", "RunContent", "read_comparison", "read_metrics", "read_run"]


@dataclass(frozen=True)
class LayerUpdate:
    """How far an adapter moves one weight."""

    layer: int | None
    target: str
    norm: float  # Frobenius norm of ΔW


@dataclass(frozen=True)
class RunContent:
    """Everything in a run folder; what an unfinished run, or one of an older version, does not have is empty."""

    name: str  # of the run folder
    manifest: RunManifest
    recipe_text: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)  # the lines of `metrics.jsonl`
    audit: dict[str, Any] | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    """Of all that it writes, with `prompts` and `references`, where a comparison measured that."""

    output_bytes: int | None = None
    updates: list[LayerUpdate] = field(default_factory=list)
    merge: dict[str, Any] | None = None  # the receipt of the model that the adapter was merged into

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of training steps that have a loss."""
        return [line for line in self.metrics if line.get("loss") is not None]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of evaluations."""
        return [line for line in self.metrics if line.get("eval_loss") is not None]


@dataclass(frozen=True)
class ComparisonContent:
    """A comparison and the runs that it is made of."""

    name: str  # of its folder
    comparison: Comparison
    runs: dict[str, RunContent]  # by the names that its entries give them
    missing: list[str]  # runs whose folders are no longer there

    def runs_of(self, entry: Entry) -> list[RunContent]:
        """The runs of an entry that are there."""
        return [self.runs[name] for name in entry.runs if name in self.runs]


def read_run(path: Path) -> RunContent:
    """Read a run folder.

    Raises:
        TargetError: it holds no run, or something in it is damaged.
    """
    folder = RunFolder(path)
    manifest = folder.read()
    if manifest.status == "running" and not is_held(path):
        manifest.status = "interrupted"
    text = folder.recipe.read_text(encoding="utf-8") if folder.recipe.is_file() else ""
    sizes = [(path / name).stat().st_size for name in manifest.outputs if (path / name).is_file()]
    return RunContent(
        name=path.resolve().name,
        manifest=manifest,
        recipe_text=text,
        # unchecked: a report of a run is still to be read when the recipe's fields have changed
        recipe=_read(folder.recipe, dict, lambda place: parse_document(text, str(place)).values if text else {}) or {},
        metrics=read_metrics(path),
        audit=_read(folder.audit, dict),
        samples=_read(folder.samples, list) or [],
        scores=(_read(folder.evaluation, dict) or {}).get("text") or {},
        output_bytes=sum(sizes) if sizes else None,
    )


def read_comparison(path: Path) -> ComparisonContent:
    """Read a comparison's folder with its runs.

    Raises:
        TargetError: it holds no comparison, or something in it is damaged.
    """
    comparison = Comparison.read(path)
    names = list(dict.fromkeys(name for entry in comparison.entries for name in entry.runs))
    there = [name for name in names if RunFolder(path / name).manifest.is_file()]
    runs = {name: read_run(path / name) for name in there}
    return ComparisonContent(path.resolve().name, comparison, runs, [name for name in names if name not in runs])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; one that a killed process left half written is none.

    Raises:
        TargetError: there is no run.
    """
    folder = RunFolder(path)
    folder.read()
    if not folder.metrics.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for line in folder.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            lines.append(value)
    return lines


def _read(place: Path, kind: type, parse: Callable[[Path], Any] = read_json) -> Any:
    """The value in a file of the run, or None where it has none."""
    if not place.is_file():
        return None
    try:
        value = parse(place)
        if not isinstance(value, kind):
            raise ValueError(f"is no {kind.__name__}")
    except (OSError, ValueError, RecipeError) as error:
        raise TargetError("is damaged.", where=str(place), remedy="Copy the run again.") from error
    return value
