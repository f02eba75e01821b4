"""A run's stored recipe, trained again, and whether the result is the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from peftkit import console
from peftkit.errors import ChangedError, InputError, RunError, TargetError
from peftkit.evaluation.evaluate import Measures, evaluate_target
from peftkit.evaluation.perplexity import Difference
from peftkit.experiments.tabulate import check_expectations, measured_of, statistic
from peftkit.recipe.loader import RecipeFile, load_recipe
from peftkit.runs.comparison import Expected
from peftkit.runs.differences import input_differences
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest
from peftkit.training.launch import run_apart
from peftkit.training.prepare import prepare_run

__all__ = ["Reproduction", "reproduce"]


@dataclass(frozen=True)
class Reproduction:
    """A run and its second one, side by side."""

    run: str
    again: str
    changes: list[str]  # what differs in versions and machine, which may make other weights of the same recipe
    same_weights: bool
    largest_difference: float  # between two numbers of the weights that were saved
    eval_loss: float | None  # of the run; None where it has no validation data
    eval_loss_again: float | None
    difference: Difference | None  # what the second run's loss has more; None where the weights are the same
    within_noise: bool | None
    """Whether the two losses differ by no more than the standard error over documents; None without validation data."""

    expected: list[Expected]

    @property
    def agrees(self) -> bool:
        """Whether it came to the same: in weights, or where versions or machine are others, in the loss."""
        return self.same_weights or bool(self.changes and self.within_noise)


def reproduce(path: Path, output: Path) -> Reproduction:
    """Train the stored recipe of a finished run again, and compare weights and loss.

    The second run is an ordinary one in `output`; one that was stopped is resumed.

    Raises:
        TargetError: the run is not finished.
        ChangedError: its data or its base is not what it was.
        InputError: the second run could not begin.
        RunError: it failed.
    """
    folder, again = RunFolder(path), RunFolder(output)
    before = folder.read()
    if before.status != "finished":
        remedy = f"Go on with it first: peftkit train {path} --resume"
        raise TargetError(f"is {before.status}, so there is nothing to reproduce.", where=str(path), remedy=remedy)
    file = load_recipe(folder.recipe, output=output)
    changes = _changes(file, before, path)
    console.info(f"training {path} again, in {output}")
    status = run_apart(["train", str(folder.recipe), "--output", str(output), "--resume"])
    if status:
        error = InputError if status == 2 else RunError
        raise error("the second run failed; its message stands above.", where=str(output))
    now = again.read()
    largest = _largest_difference(folder, again, before)
    same = largest == 0.0
    gap, noise = (None, None) if same or now.metrics.eval_loss is None else _gap(file, again, path)
    metrics = {name: statistic([float(value)]) for name, value in measured_of(again).items() if value is not None}
    return Reproduction(
        run=str(path),
        again=str(output),
        changes=changes,
        same_weights=same,
        largest_difference=largest,
        eval_loss=before.metrics.eval_loss,
        eval_loss_again=now.metrics.eval_loss,
        difference=gap,
        within_noise=None if now.metrics.eval_loss is None else same or bool(noise),
        expected=list(check_expectations(file.recipe, path.name, metrics)),
    )


def _changes(file: RecipeFile, before: RunManifest, path: Path) -> list[str]:
    """What differs in versions and machine; ChangedError if the data or the base does."""
    now = prepare_run(file).manifest
    found = input_differences(before, now)
    inputs = [str(each) for each in found if each.field.startswith(("data.", "base"))]
    if inputs:
        remedy = "Bring back what it was trained on; without that nothing can be reproduced."
        raise ChangedError(inputs, where=str(path), remedy=remedy)
    machine = [] if before.hardware == now.hardware else ["hardware: another machine, or other threads."]
    return [*map(str, found), *machine]


def _largest_difference(folder: RunFolder, again: RunFolder, before: RunManifest) -> float:
    """Between two numbers of the weights; infinite where tensors are missing or have other shapes."""
    largest = 0.0
    for name in before.outputs:
        if name.endswith(".safetensors"):
            if not (again.path / name).is_file():
                return float("inf")
            largest = max(largest, *_differences(folder.path / name, again.path / name))
    return largest


def _differences(ours: Path, theirs: Path) -> Iterator[float]:
    yield 0.0
    with safe_open(ours, "pt") as first, safe_open(theirs, "pt") as second:
        if set(first.keys()) != set(second.keys()):
            yield float("inf")
            return
        for name in first.keys():  # noqa: SIM118 - it is no dictionary
            a, b = first.get_tensor(name), second.get_tensor(name)
            if a.shape != b.shape:
                yield float("inf")
            elif a.numel():
                yield float((a.double() - b.double()).abs().max())


def _gap(file: RecipeFile, again: RunFolder, path: Path) -> tuple[Difference | None, bool]:
    """How the two losses differ on the same documents, and whether by no more than noise."""
    measured = evaluate_target(str(again.path), file.recipe.data, Measures(baseline=str(path)))
    assert measured.baseline is not None
    gap = measured.baseline.difference
    error = measured.standard_error
    return gap, gap.is_noise or (error is not None and abs(gap.nats) <= error)
