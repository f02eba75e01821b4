"""One recipe by several methods, with several values and over several seeds, in one table."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from peftkit import console
from peftkit.errors import InputError, RunError, TargetError
from peftkit.evaluation.evaluate import Measures, evaluate_target
from peftkit.experiments.tabulate import tabulate
from peftkit.metrics import METRICS
from peftkit.recipe.library import recipe_name
from peftkit.recipe.loader import RecipeFile, load_recipe
from peftkit.recipe.methods import Method, unused_sections
from peftkit.recipe.schema import Recipe
from peftkit.runs.comparison import COMPARISON_NAME, Comparison
from peftkit.runs.folder import RunFolder, locked
from peftkit.storage import is_free, read_json, write_json
from peftkit.training.launch import run_apart, wait_for
from peftkit.training.run import read_past

__all__ = ["Arm", "Cell", "CompareOptions", "arms_of", "compare", "with_rate"]

_PLAN_NAME, _BASE_NAME = "plan.json", "base.json"
_RATE, _SEED = "training.learning_rate", "training.seed"
_NO_NAME = re.compile(r"[^A-Za-z0-9.+-]+")


@dataclass(frozen=True)
class CompareOptions:
    """What is compared."""

    methods: tuple[Method, ...]
    seeds: int = 1  # runs of each, with the recipe's own seed and those after it
    vary: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Values for fields of the recipe, each of which is combined with each other."""

    learning_rates: tuple[str, ...] = ()
    """Rates to choose each method's own from, by the validation loss of its first seed."""

    generates: bool = False  # generate completions of the validation data by every run, and score them
    by: str = "eval_loss"  # the metric that is compared
    overrides: tuple[str, ...] = ()  # `--set`, for all runs.


def compare(recipe: Path, options: CompareOptions, output: Path) -> Comparison:
    """Train a recipe by each method, with each value and seed, and put what came out side by side.

    Every run is an ordinary run folder in `output`, trained in a process of its own, so that its peak memory is its
    own. Finished runs stay as they are, and one that was stopped is resumed.

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
        base = output / _BASE_NAME if generates else None
        comparison = tabulate(recipe_name(recipe), arms, options, output, tried, base)
        write_json(output / COMPARISON_NAME, comparison.to_json())
    return comparison


class Cell(NamedTuple):
    """One run: an arm with a seed."""

    name: str  # of its folder
    recipe: Recipe
    arguments: list[str]  # of `peftkit train`, without the output


@dataclass(frozen=True)
class Arm:
    """A method with its settings, which is run with each seed."""

    name: str  # as the table calls it: `lora`, `lora r=4`
    recipe: Path
    method: Method
    overrides: tuple[str, ...]
    changes: Mapping[str, str]  # fields and values, as `--set` takes them
    file: RecipeFile

    def cells(self, seeds: int) -> list[Cell]:
        """The arm with the recipe's own seed, and with those after it."""
        first = self.file.recipe.training.seed
        values = "".join(f"-{_leaf(name)}{_NO_NAME.sub('_', value)}" for name, value in self.changes.items())
        settings = [part for each in _settings(self.overrides, self.changes) for part in ("--set", each)]
        return [
            Cell(
                f"{self.method}{values}-seed{seed}",
                self.file.with_training({"seed": seed}).recipe,
                [str(self.recipe), "--method", self.method, *settings, "--set", f"{_SEED}={seed}"],
            )
            for seed in range(first, first + seeds)
        ]


def arms_of(
    recipe: Path, methods: Sequence[Method], vary: Mapping[str, Sequence[str]], overrides: Sequence[str]
) -> list[Arm]:
    """Every method with every combination of the values; those of fields that a method does not use, once.

    Raises:
        InputError: the recipe is wrong with one of them, or two are the same.
    """
    if _SEED in vary:
        raise InputError("training.seed is varied by --seeds.", where="--vary", remedy="Give --seeds.")
    arms: list[Arm] = []
    for method in methods:
        unused = tuple(f"{section}." for section in unused_sections(method))
        fields = [name for name in vary if not name.startswith(unused)]
        arms.extend(
            _arm(recipe, method, overrides, dict(zip(fields, values, strict=True)))
            for values in product(*(vary[name] for name in fields))
        )
    names = [arm.cells(1)[0].name for arm in arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        remedy = "Give each method and value once."
        raise InputError(f"two runs would be called {twice}.", where="--methods and --vary", remedy=remedy)
    return arms


def with_rate(arm: Arm, rate: str) -> Arm:
    """The same with another learning rate.

    Raises:
        RecipeError: it is none.
    """
    return _arm(arm.recipe, arm.method, arm.overrides, {**arm.changes, _RATE: rate})


def _arm(recipe: Path, method: Method, overrides: Sequence[str], changes: Mapping[str, str]) -> Arm:
    file = load_recipe(recipe, method=method, overrides=_settings(overrides, changes))
    name = " ".join([method, *(f"{_leaf(field)}={value}" for field, value in changes.items())])
    return Arm(name, recipe, method, tuple(overrides), changes, file)


def _settings(overrides: Sequence[str], changes: Mapping[str, str]) -> list[str]:
    return [*overrides, *(f"{name}={value}" for name, value in changes.items())]


def _leaf(field: str) -> str:
    return "lr" if field == _RATE else field.rpartition(".")[2]


@contextlib.contextmanager
def _held(output: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Hold the comparison's folder, new or begun earlier; TargetError if it or a process in it is something else's."""
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
    """Train one run to its end unless it is finished; gives whether it is.

    Raises InputError or RunError, by its exit status, if it failed and must not.
    """
    folder = RunFolder(output / cell.name)
    if _is_finished(folder, cell):
        console.info(f"{which}: {cell.name} is finished already")
        return True
    wait_for(folder.path)
    console.info(f"{which}: {cell.name}")
    resuming = [] if folder.is_free else ["--resume"]
    status = run_apart(["train", *cell.arguments, "--output", str(folder.path), *resuming])
    if status and not (may_fail and status == 1):
        remedy = "Fix it, and give the same command again: finished runs stay."
        error = InputError if status == 2 else RunError
        raise error(f"{cell.name} failed; its message stands above.", where=str(folder.path), remedy=remedy)
    return not status


def _is_finished(folder: RunFolder, cell: Cell) -> bool:
    if not folder.manifest.is_file():
        return False
    manifest = folder.read()
    return manifest.status == "finished" and read_past(folder, manifest).is_finished(cell.recipe, ())


def _with_best_rate(arm: Arm, rates: Sequence[str], output: Path, tried: list[dict[str, Any]]) -> Arm:
    """The arm with the learning rate whose first seed has the lowest validation loss; RunError if no run finished."""
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
    """Score what every run and the untouched base write; what was measured already stays."""
    recipe = cells[0].recipe
    if recipe.base.model:
        base = f"{recipe.base.model}@{recipe.base.revision}" if recipe.base.revision else recipe.base.model
        _written(base, f"{recipe.base.model} before any fine-tuning", recipe, output / _BASE_NAME)
    for cell in cells:
        folder = RunFolder(output / cell.name)
        _written(str(folder.path), cell.name, cell.recipe, folder.evaluation)


def _written(target: str, name: str, recipe: Recipe, place: Path) -> None:
    """Let a target write the completions, and keep the scores, unless they are there already."""
    if place.is_file() and read_json(place)["generation"] == recipe.generation.model_dump(mode="json"):
        return
    console.info(f"what {name} writes")
    write_json(place, asdict(evaluate_target(target, recipe.data, Measures(generation=recipe.generation))))
