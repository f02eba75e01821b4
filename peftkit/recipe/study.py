"""A study file: which fields of a recipe are searched over, in which ranges, and with how many trials.

n_trials: 20
space:
training.learning_rate: {low: 1e-5, high: 1e-3, log: true}
training.num_train_epochs: {low: 1, high: 5, step: 1}
lora.r: [4, 8, 16]
"""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from peftkit.recipe.section import Section, disagree

__all__ = ["Range", "Scalar", "Span", "Study", "holds"]

Scalar: TypeAlias = str | bool | int | float | None
Number: TypeAlias = float | int


class Range(Section):
    """Numbers from a lowest to a highest one."""

    low: Number
    """Lowest value."""

    high: Number
    """Highest value, which may come too."""

    log: bool = False
    """Search over orders of magnitude: as often between 1e-5 and 1e-4 as between 1e-4 and 1e-3."""

    step: Annotated[Number, Field(gt=0)] | None = None
    """Distance between two values; with whole numbers, only whole ones come. Unset: any number, or any whole one where
    the field takes no other."""

    @property
    def is_whole(self) -> bool:
        """Whether all its values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.low >= self.high:
            disagree(("high", f"is {self.high:g}, not above low {self.low:g}. Change one of them."))
        if self.log and self.low <= 0:
            disagree(("low", f"is {self.low:g}, but must be above 0 for log. Change one of them."))
        if self.step is not None:
            steps = (self.high - self.low) / self.step
            if self.log:
                disagree(("step", "cannot act with log. Remove one of them."))
            if not math.isclose(steps, round(steps), abs_tol=1e-9):
                disagree(("step", f"does not lead from low {self.low:g} to high {self.high:g}. Change one of them."))
        return self


def _kind(span: Any) -> str:
    return "Choices" if isinstance(span, list) else "Range"


def _differ(choices: list[Scalar]) -> list[Scalar]:
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise ValueError("must name two values or more, each once. Set one value in the recipe, or by --set.")
    return choices


def _names_some(space: dict[str, Any]) -> dict[str, Any]:
    if not space:
        raise ValueError("names no field. Add one, as training.learning_rate: {low: 1e-5, high: 1e-3, log: true}.")
    return space


Span: TypeAlias = Annotated[
    Annotated[Range, Tag("Range")] | Annotated[list[Scalar], AfterValidator(_differ), Tag("Choices")],
    Discriminator(_kind),
]


class Study(Section):
    """A search for the values of some fields with which a recipe's validation loss is lowest."""

    n_trials: Annotated[int, Field(gt=0)] = 20
    """Trials in all: those that were finished, ended early or failed. The first has the recipe's own values."""

    time_limit_minutes: Annotated[float, Field(gt=0)] | None = None
    """After so many minutes the trial that trains is saved and the search ends; the same command goes on with it."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Start of every random choice of the search. The seed of training is the recipe's in each trial."""

    pruning: bool = True
    """End trials early whose loss is worse than the median of the others at the same evaluation. Set it to false where
    the length of training is searched over: with half of a long training, a loss is worse than at the end of a short
    one."""

    space: Annotated[dict[str, Span], AfterValidator(_names_some)]
    """The fields, each with a range of numbers or with a list of values."""


def holds(span: Range | list[Scalar], value: Any) -> bool:
    """Whether a value is one that the search may come to."""
    if isinstance(span, list):
        return value in span
    if isinstance(value, bool) or not isinstance(value, int | float) or not span.low <= value <= span.high:
        return False
    if span.is_whole or span.step is not None:
        steps = (value - span.low) / (span.step or 1)
        return math.isclose(steps, round(steps), abs_tol=1e-9)
    return True
