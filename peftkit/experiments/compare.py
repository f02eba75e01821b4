"""One recipe by several methods and over several seeds, in one table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from peftkit import console
from peftkit.errors import InputError, RunError, TargetError
from peftkit.evaluation.evaluate import Measures, evaluate_target
from peftkit.experiments.arms import Arm, Cell, arms_of, with_rate
from peftkit.experiments.tabulate import Table, tabulate
from peftkit.metrics import METRICS
from peftkit.recipe.library import recipe_name
from peftkit.recipe.schema import Method, Recipe
from peftkit.runs.comparison import COMPARISON_NAME, Comparison
from peftkit.runs.folder import RunFolder, locked
from peftkit.storage import is_free, read_json, write_json
from peftkit.training.launch import run_apart, wait_for
from peftkit.training.run import read_past

__all__ = ["CompareOptions", "compare"]

_PLAN_NAME = "plan.json"
_BASE_NAME = "base.json"


@dataclass(frozen=True)
class CompareOptions:
    """What is compared."""

    methods: tuple[Method, ...]
    seeds: int = 1
    """Runs of each, with the recipe's own seed and those after it."""

    vary: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Values for fields of the recipe, each of which is combined with each other."""

    learning_rates: tuple[str, ...] = ()
    """Rates to choose each method's own from, by the validation loss of its first seed."""

    generates: bool = False
    """Let every run write the completions of the validation data, and score them."""

    by: str = "eval_loss"
    """The metric that is compared."""

    overrides: tuple[str, ...] = ()
    """`--set`, for all runs."""


def compare(recipe: Path, options: CompareOptions, output: Path) -> Comparison:
    """Train a recipe by each method, with each value and seed, and put what came out side by side.

    Every run is an ordinary run folder in `output`, trained in a process of its own, so that its peak memory is its
    own. Runs that are finished stay as they are, and one that was stopped is gone on with.

    Raises:
        InputError: the recipe is wrong for one of the runs, or the folder is another's; nothing has been trained then.
        RunError: a run failed.
        Stopped: a signal came; what was trained is saved.
    """
    arms = arms_of(recipe, options.methods, options.vary, options.overrides)
    first = arms[0].file.recipe
    if first.data.validation is None:
        raise InputError("has no data.validation to compare on.", where=str(recipe), remedy="Add it.")
    wanted = [options.by, *(expectation.metric for expectation in first.expect)]
    generates = options.generates or any(METRICS[name].group == "completions" for name in wanted)
    for rate in options.learning_rates:
        for arm in arms:
            with_rate(arm, rate)  # each is checked before anything is trained
    with _held(output, {"recipe": str(recipe), **asdict(options)}):
        tried: list[dict[str, Any]] = []
        if options.learning_rates:
            arms = [_with_best_rate(arm, options.learning_rates, output, tried) for arm in arms]
        cells = [cell for arm in arms for cell in arm.cells(options.seeds)]
        for number, cell in enumerate(cells, start=1):
            _train(cell, output, f"{number} of {len(cells)}")
        if generates:
            _evaluate(cells, output)
        table = Table(recipe_name(recipe), arms, output, options.seeds, options.by, tried)
        comparison = tabulate(table, output / _BASE_NAME if generates else None)
        write_json(output / COMPARISON_NAME, comparison.to_json())
    return comparison


@contextlib.contextmanager
def _held(output: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Hold the comparison's folder, new or begun earlier.

    Raises:
        TargetError: it is something else's, or another process is at work in it.
    """
    if not is_free(output) and not (output / _PLAN_NAME).is_file():
        remedy = "Name another place with --output."
        raise TargetError("exists already, and holds no comparison.", where=str(output), remedy=remedy)
    with contextlib.ExitStack() as held:
        try:
            output.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(output))
            write_json(output / _PLAN_NAME, plan)
        except OSError as error:
            remedy = "Name another place with --output."
            raise TargetError(f"cannot be written: {error.strerror}.", where=str(output), remedy=remedy) from error
        yield


def _train(cell: Cell, output: Path, which: str, *, may_fail: bool = False) -> bool:
    """Train one run to its end, or see that it has come there; gives whether it has.

    Raises:
        InputError: recipe, base or data are wrong.
        RunError: it failed, and must not.
    """
    folder = RunFolder(output / cell.name)
    if _is_finished(folder, cell):
        console.info(f"{which}: {cell.name} is finished already")
        return True
    wait_for(folder.path)
    console.info(f"{which}: {cell.name}")
    going_on = [] if folder.is_free else ["--resume"]
    status = run_apart(["train", *cell.arguments(), "--output", str(folder.path), *going_on])
    if status and not (may_fail and status == 1):
        remedy = "Mend it, and give the same command again: finished runs stay."
        error = InputError if status == 2 else RunError
        raise error(f"{cell.name} failed; its message stands above.", where=str(folder.path), remedy=remedy)
    return not status


def _is_finished(folder: RunFolder, cell: Cell) -> bool:
    if not folder.manifest.is_file():
        return False
    manifest = folder.read()
    return manifest.status == "finished" and read_past(folder, manifest).is_finished(cell.file.recipe, ())


def _with_best_rate(arm: Arm, rates: Sequence[str], output: Path, tried: list[dict[str, Any]]) -> Arm:
    """The arm with the learning rate whose first seed has the lowest validation loss.

    Raises:
        RunError: none of the rates came to an end.
    """
    found: list[tuple[float, Arm]] = []
    for number, rate in enumerate(rates, start=1):
        candidate = with_rate(arm, rate)
        cell = candidate.cells(1)[0]
        which = f"learning rate {number} of {len(rates)} for {arm.name}"
        done = _train(cell, output, which, may_fail=True)
        loss = RunFolder(output / cell.name).read().metrics.eval_loss if done else None
        tried.append({"entry": arm.name, "learning_rate": rate, "run": cell.name, "eval_loss": loss, "chosen": False})
        if loss is not None:
            found.append((loss, candidate))
    if not found:
        raise RunError(f"{arm.name} came to an end with none of the learning rates.", remedy="Give lower ones.")
    best = min(found, key=lambda each: each[0])[1]
    chosen = best.cells(1)[0].name
    for attempt in tried:
        attempt["chosen"] = attempt["chosen"] or attempt["run"] == chosen
    return replace(best, name=arm.name)


def _evaluate(cells: Sequence[Cell], output: Path) -> None:
    """Let every run write the completions, and the untouched base; what was measured already stays."""
    recipe = cells[0].file.recipe
    if recipe.base.model:
        base = f"{recipe.base.model}@{recipe.base.revision}" if recipe.base.revision else recipe.base.model
        _written(base, f"{recipe.base.model} before any fine-tuning", recipe, output / _BASE_NAME)
    for cell in cells:
        folder = RunFolder(output / cell.name)
        _written(str(folder.path), cell.name, cell.file.recipe, folder.evaluation)


def _written(target: str, name: str, recipe: Recipe, place: Path) -> None:
    """Let a target write the completions, and keep the scores, unless they are there already."""
    if place.is_file() and read_json(place)["generation"] == recipe.generation.model_dump(mode="json"):
        return
    console.info(f"what {name} writes")
    write_json(place, asdict(evaluate_target(target, recipe.data, Measures(generation=recipe.generation))))
