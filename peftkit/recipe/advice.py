"""What experience says of a field: the values that are usual, who used them, and what other ones do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from peftkit.recipe.schema import Recipe

__all__ = ["Advice", "Between", "Measure", "OneOf", "Usual", "Verdict", "kind_of", "shown"]

_SMALL = 1e-3  # numbers below are read more easily with an exponent
Verdict = Literal["usual", "below", "above", "other"]


@dataclass(frozen=True)
class Between:
    """A range that a number is usually in."""

    low: float
    high: float
    source: str
    """Who used it, and where that is written."""

    kinds: tuple[str, ...] = ()
    """What it is said of: methods, or `new` for every weight of a base made from `base.init`; empty for all."""

    def verdict(self, value: Any) -> Verdict:
        """Where a number lies."""
        return "below" if value < self.low else "above" if value > self.high else "usual"

    @property
    def middle(self) -> float:
        """The number as far above the low end as below the high one, by ratio, to one digit."""
        return float(f"{(self.low * self.high) ** 0.5:.0e}")

    def __str__(self) -> str:
        return shown(self.low) if self.low == self.high else f"{shown(self.low)} to {shown(self.high)}"


@dataclass(frozen=True)
class OneOf:
    """Values of which a field usually has one."""

    values: tuple[Any, ...]
    source: str
    kinds: tuple[str, ...] = ()

    def verdict(self, value: Any) -> Verdict:
        """Whether a value is one of them."""
        return "usual" if value in self.values else "other"

    def __str__(self) -> str:
        return " or ".join(shown(value) for value in self.values)


Usual: TypeAlias = Between | OneOf


@dataclass(frozen=True)
class Measure:
    """A figure that a field is judged by, where its own value alone says little."""

    name: str
    of: Callable[[Recipe], float | None]
    """The figure of a recipe; None where the recipe alone does not give it."""


@dataclass(frozen=True)
class Advice:
    """What is known of a field beside its meaning."""

    usual: tuple[Usual, ...] = ()
    """The first that is said of what a recipe trains holds."""

    higher: str | None = None
    """What a higher number does."""

    lower: str | None = None
    """What a lower number does."""

    named: Mapping[str, str] = field(default_factory=dict)
    """What a value does, by its name."""

    measure: Measure | None = None

    @property
    def effects(self) -> dict[str, str]:
        """What other values do: `higher`, `lower`, or a value's name."""
        ways = {"higher": self.higher, "lower": self.lower, **self.named}
        return {way: effect for way, effect in ways.items() if effect}

    def usual_for(self, kind: str) -> Usual | None:
        """The usual values for what is trained; None where nothing is usual."""
        return next((usual for usual in self.usual if not usual.kinds or kind in usual.kinds), None)

    def usual_texts(self) -> list[str]:
        """Each usual range or choice with its source, and what it is said of where that is not everything."""
        unit = f"{self.measure.name} " if self.measure else ""
        texts = []
        for usual in self.usual:
            of = f"{', '.join(usual.kinds)}: " if usual.kinds else ""
            texts.append(f"{of}{unit}{usual} ({usual.source})")
        return texts or ["nothing: it depends on the run"]

    def lines(self) -> list[tuple[str, str]]:
        """All of it, each with what it is: `usual`, `higher`, `lower`, or a value's name."""
        return [*(("usual", text) for text in self.usual_texts()), *self.effects.items()]


def kind_of(recipe: Recipe) -> str:
    """What a recipe trains."""
    return "new" if recipe.base.init else recipe.method


def shown(value: Any) -> str:
    """A value as a recipe shows it: `5e-5`, `true`, `[c_attn]`."""
    if isinstance(value, float):
        small = 0 < abs(value) < _SMALL
        return re.sub(r"\.?0*e-0?", "e-", f"{value:e}") if small else f"{value:g}"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    return json.dumps(value)
