"""How far an adapter moves each weight, and in how many directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from peftkit.adapters.files import Adapter, Floats
from peftkit.adapters.lora import Doubles, Factors, meaning_of, place_of

__all__ = ["ModuleUpdate", "WholeUpdate", "inspect_modules", "inspect_whole"]

WeightOf = Callable[[str], Floats | None]
"""The base's parameter of a name, a module's weight as [out, in]; None where the base is not at hand."""

_BLOCK_NUMBERS = 1 << 22


@dataclass(frozen=True)
class ModuleUpdate:
    """What an adapter does to one weight, W + ΔW."""

    module: str
    layer: int | None
    target: str
    """The module's name inside its layer."""

    rank: int
    scaling: float
    norm: float
    """Frobenius norm of ΔW."""

    relative_norm: float | None
    """‖ΔW‖ / ‖W‖; None where the base is not at hand."""

    effective_rank: float
    """Exponential of the entropy of the singular values (Roy and Vetterli 2007): about how many directions ΔW has."""

    largest: float
    """The largest number in ΔW, by its size."""

    untouched: bool
    """B is all zeros, as it began: nothing was learnt here."""


@dataclass(frozen=True)
class WholeUpdate:
    """What an adapter puts in the place of a parameter of the base."""

    name: str
    shape: list[int]
    relative_norm: float | None
    """‖new - old‖ / ‖old‖; None where the base is not at hand, or had another shape."""


def inspect_modules(adapter: Adapter, weight_of: WeightOf) -> list[ModuleUpdate]:
    """The update of every module, in the order of the layers.

    Where the base is at hand, DoRA's is the whole change of the weight; otherwise it is that of its direction alone.
    """
    factors = meaning_of(adapter).factors
    return [_module(name, factors[name], weight_of(f"{name}.weight")) for name in sorted(factors, key=_natural)]


def inspect_whole(adapter: Adapter, weight_of: WeightOf) -> list[WholeUpdate]:
    """The parameters that were trained whole."""
    return [
        WholeUpdate(name, list(new.shape), _relative_change(new, weight_of(name)))
        for name, new in meaning_of(adapter).whole.items()
    ]


def _module(name: str, factors: Factors, weight: Floats | None) -> ModuleUpdate:
    layer, target = place_of(name)
    _, values, _ = factors.svd()
    if factors.magnitude is not None and weight is not None:
        change = factors.adapted(weight) - weight
        norm, largest = float(np.linalg.norm(change)), float(np.abs(change).max())
    else:
        norm, largest = float(np.linalg.norm(values)), _largest(factors)
    return ModuleUpdate(
        module=name,
        layer=layer,
        target=target,
        rank=factors.rank,
        scaling=factors.scaling,
        norm=norm,
        relative_norm=_relative(norm, weight),
        effective_rank=_effective_rank(values),
        largest=largest,
        untouched=not factors.b.any(),
    )


def _relative_change(new: Floats, old: Floats | None) -> float | None:
    if old is not None and old.shape != new.shape:
        old = old.T  # a Conv1D's weight, which is given as a Linear's
    if old is None or old.shape != new.shape:
        return None
    return _relative(float(np.linalg.norm(new - old)), old)


def _relative(norm: float, weight: Floats | None) -> float | None:
    size = float(np.linalg.norm(weight)) if weight is not None else 0.0
    return norm / size if size else None


def _effective_rank(values: Doubles) -> float:
    total = values.sum()
    if not total:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _largest(factors: Factors) -> float:
    """The largest number of the product, which is made some rows at a time: of a large layer it is large itself."""
    rows = max(1, _BLOCK_NUMBERS // factors.a.shape[1])
    blocks = (factors.b[start : start + rows] @ factors.a for start in range(0, len(factors.b), rows))
    return max(float(np.abs(block).max()) for block in blocks) * abs(factors.scaling)


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts layer 2 before layer 10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in name.split("."))
