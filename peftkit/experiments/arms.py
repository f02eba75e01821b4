"""The runs that a comparison is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from peftkit.errors import InputError
from peftkit.recipe.loader import RecipeFile, load_recipe
from peftkit.recipe.methods import Method, unused_sections

__all__ = ["Arm", "Cell", "arms_of", "with_rate"]

_RATE = "training.learning_rate"
_SEED = "training.seed"
_NO_NAME = re.compile(r"[^A-Za-z0-9.+-]+")


@dataclass(frozen=True)
class Cell:
    """One run: an arm with a seed."""

    name: str
    """Of its folder."""

    arm: Arm
    seed: int
    file: RecipeFile

    def arguments(self) -> list[str]:
        """What says to `peftkit train` which run it is."""
        arm = self.arm
        settings = [*_settings(arm.overrides, arm.changes), f"{_SEED}={self.seed}"]
        options = [part for setting in settings for part in ("--set", setting)]
        return [str(arm.recipe), "--method", arm.method, *options]


@dataclass(frozen=True)
class Arm:
    """A method with its settings, which is run with each seed."""

    name: str
    """As the table calls it: `lora`, `lora r=4`."""

    recipe: Path
    method: Method
    overrides: tuple[str, ...]
    changes: Mapping[str, str]
    """Fields and values, as `--set` takes them."""

    file: RecipeFile

    def cells(self, seeds: int) -> list[Cell]:
        """The arm with the recipe's own seed, and with those after it."""
        first = self.file.recipe.training.seed
        return [self._cell(seed) for seed in range(first, first + seeds)]

    def _cell(self, seed: int) -> Cell:
        settings = "".join(f"-{_leaf(name)}{_NO_NAME.sub('_', value)}" for name, value in self.changes.items())
        return Cell(f"{self.method}{settings}-seed{seed}", self, seed, self.file.with_training({"seed": seed}))


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
