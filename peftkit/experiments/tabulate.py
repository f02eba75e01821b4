"""The runs of a comparison as one table: means, standard errors and paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any, Literal

from scipy.special import stdtrit

from peftkit.metrics import METRICS, in_group
from peftkit.models.quantization import backend_of
from peftkit.recipe.advice import shown
from peftkit.recipe.methods import METHODS, Method, usual_rate
from peftkit.recipe.schema import Recipe
from peftkit.report.content import read_metrics
from peftkit.runs.comparison import Against, Comparison, Entry, Expected, Statistic
from peftkit.runs.folder import RunFolder
from peftkit.storage import read_json

if TYPE_CHECKING:
    from peftkit.experiments.compare import Arm, CompareOptions

__all__ = ["check_expectations", "measured_of", "rate_concern", "statistic", "tabulate", "welch_interval"]

_OF_THE_BASE = ("base.", "data.", "quantization.")
"""Sections that the untouched base's own loss depends on."""

_RISE = 0.02
"""A validation loss that ends this share above its lowest has risen."""

_SMALL = 100_000_000
"""Models with fewer parameters than this take higher rates, and nothing is said of them."""


def tabulate(
    recipe: str,
    arms: Sequence[Arm],
    options: CompareOptions,
    folder: Path,
    tried: list[dict[str, Any]],
    base_evaluation: Path | None,
) -> Comparison:
    """Read what every run of every arm measured; `base_evaluation` scores the untouched base, if that was asked for."""
    by, seed = options.by, arms[0].file.recipe.training.seed
    entries = [_entry(arm, folder, options.seeds) for arm in arms]
    higher = METRICS[by].better == "higher"
    best = (max if higher else min)(entries, key=lambda entry: entry.metrics[by].mean)
    entries = [replace(entry, against_best=_against(entry, best, by)) for entry in entries]
    return Comparison(
        recipe=recipe,
        by=by,
        higher_is_better=higher,
        seeds=list(range(seed, seed + options.seeds)),
        entries=[*_bases(arms, folder, base_evaluation), *entries],
        warnings=[each for arm in arms for each in _warnings(arm, folder, options.seeds, rates_tried=bool(tried))],
        expected=[
            found
            for arm, entry in zip(arms, entries, strict=True)
            for found in check_expectations(arm.file.recipe, entry.name, entry.metrics)
        ],
        tried=tried,
    )


def check_expectations(recipe: Recipe, name: str, metrics: dict[str, Statistic]) -> Iterator[Expected]:
    """What the recipe expects of its method, and what came."""
    for expectation in recipe.expect:
        if expectation.methods is None or recipe.method in expectation.methods:
            value = metrics[expectation.metric].mean if expectation.metric in metrics else None
            distance = None if value is None else expectation.distance(value)
            yield Expected(name, expectation.metric, expectation.band, expectation.source, value, distance)


def _entry(arm: Arm, folder: Path, seeds: int) -> Entry:
    cells = arm.cells(seeds)
    measured = [measured_of(RunFolder(folder / cell.name)) for cell in cells]
    names = [name for name in measured[0] if all(each.get(name) is not None for each in measured)]
    metrics = {name: statistic([float(each[name]) for each in measured]) for name in names}
    return Entry(arm.name, arm.method, dict(arm.changes), [cell.name for cell in cells], metrics)


def measured_of(folder: RunFolder) -> dict[str, Any]:
    """The numbers of one run, those of what it writes included where they are there; None is what is not known."""
    manifest = folder.read()
    found = {name: getattr(manifest.metrics, name, None) for name in in_group("quality", "cost")}
    weights = [name for name in manifest.outputs if name.endswith(".safetensors")]
    found["output_bytes"] = sum((folder.path / name).stat().st_size for name in weights)
    return found | _text_scores(folder.evaluation)


def _text_scores(place: Path) -> dict[str, float]:
    text = read_json(place)["text"] if place.is_file() else None
    return {name: text[name] for name in in_group("completions")} if text else {}


def _against(entry: Entry, best: Entry, by: str) -> Against:
    if entry is best:
        return Against(0.0, None, None, "best")
    ours, theirs = entry.metrics[by], best.metrics[by]
    low, high = welch_interval(ours.values, theirs.values) or (None, None)
    verdict: Literal["unknown", "noise", "worse"]
    verdict = "unknown" if low is None or high is None else "noise" if low <= 0 <= high else "worse"
    return Against(ours.mean - theirs.mean, low, high, verdict)


def _bases(arms: Sequence[Arm], folder: Path, base_evaluation: Path | None) -> list[Entry]:
    """The untouched base as the runs measured it before their first step: whole, and quantised."""
    found: dict[str, Entry] = {}
    for arm in arms:
        before = RunFolder(folder / arm.cells(1)[0].name).read().metrics.base_perplexity
        if before is None or arm.file.recipe.base.init:
            continue
        held = arm.file.recipe.base_quantization
        changes = {name: value for name, value in arm.changes.items() if name.startswith(_OF_THE_BASE)}
        settings = "".join(f" {name.rpartition('.')[2]}={value}" for name, value in changes.items())
        name = f"base in {backend_of(held).describe(held)[0]}{settings}" if held else f"base{settings}"
        metrics = {"eval_loss": statistic([math.log(before)]), "perplexity": statistic([before])}
        if base_evaluation and not held:
            metrics |= {key: statistic([value]) for key, value in _text_scores(base_evaluation).items()}
        found.setdefault(name, Entry(name, None, dict(changes), [], metrics))
    return sorted(found.values(), key=lambda entry: entry.name)


def _warnings(arm: Arm, folder: Path, seeds: int, *, rates_tried: bool) -> Iterator[str]:
    """What makes an entry look worse than its method is."""
    training = arm.file.recipe.training
    first = RunFolder(folder / arm.cells(1)[0].name)
    total = first.read().metrics.total_parameters or 0
    concern = None if rates_tried else rate_concern(arm.method, training.learning_rate, total)
    if concern:
        yield f"{arm.name}: {concern} --lr-per-method gives each method its best."
    for cell in arm.cells(seeds):
        known = (line.get("eval_loss") for line in read_metrics(folder / cell.name))
        losses = [loss for loss in known if loss is not None]
        if losses and losses[-1] > min(losses) * (1 + _RISE):
            yield (
                f"{cell.name}: the validation loss rose again, from {min(losses):.4f} to {losses[-1]:.4f}: "
                "the learning rate is too high for it, or there are too many epochs."
            )


def statistic(values: Sequence[float]) -> Statistic:
    """The mean of some runs' numbers, with its standard error."""
    error = math.sqrt(variance(values) / len(values)) if len(values) > 1 else None
    return Statistic(fmean(values), error, list(values))


def welch_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float] | None:
    """The interval that holds the difference of two means, ours less theirs, 95 of 100 times (Welch 1947).

    None where one of them has a single value, which says nothing about its noise.
    """
    if len(ours) < 2 or len(theirs) < 2:
        return None
    parts = [variance(values) / len(values) for values in (ours, theirs)]
    squared = sum(parts)
    difference = fmean(ours) - fmean(theirs)
    if squared == 0:
        return difference, difference
    freedom = squared**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (ours, theirs), strict=True))
    reach = float(stdtrit(freedom, 0.975)) * math.sqrt(squared)  # Student's t, exceeded either way 5 of 100 times
    return difference - reach, difference + reach


def rate_concern(method: Method, learning_rate: float, total_parameters: int) -> str | None:
    """What to say of a rate that is far from what a method is usually trained with; None where there is nothing."""
    low, high = METHODS[method].rarely
    if total_parameters < _SMALL or low <= learning_rate <= high:
        return None
    side = "low" if learning_rate < low else "high"
    used = usual_rate(method)
    what = f"learning_rate {shown(learning_rate)} is {side} for {method}"
    return f"{what}, which is usually trained with {used} ({used.source})."
