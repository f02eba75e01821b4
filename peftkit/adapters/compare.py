"""Two adapters side by side: their settings, and where their updates point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftkit.adapters.files import Adapter
from peftkit.adapters.lora import Doubles, Factors, meaning_of, place_of

__all__ = ["FieldDifference", "ModuleOverlap", "field_differences", "overlaps"]

_NOISE = 1e-6
"""Singular values below this share of the largest are rounding."""


@dataclass(frozen=True)
class FieldDifference:
    """A setting in which two adapters differ; None is what one of them has not."""

    field: str
    first: Any
    second: Any


@dataclass(frozen=True)
class ModuleOverlap:
    """How alike two adapters' updates of one module are."""

    module: str
    layer: int | None
    target: str
    ranks: tuple[int, int]
    cosine: float | None
    """Of the angle between the two updates, taken as vectors: 1 the same direction, 0 none in common."""

    input_overlap: float | None
    """Share that the input directions they read have in common, from 0 to 1: the similarity of Hu et al. 2021,
    section 7.2, at both full ranks. It and the next are None where an update is zero."""

    output_overlap: float | None
    """The same of the output directions they write."""


def field_differences(first: Adapter, second: Adapter) -> list[FieldDifference]:
    """The settings that differ: of the recipes, where both are recorded, and of the adapters' configurations."""
    sides = [dict(_fields("adapter_config", adapter.config)) for adapter in (first, second)]
    if first.record and second.record:
        for side, record in zip(sides, (first.record, second.record), strict=True):
            side.update(_fields("", record.to_json()["recipe"]))
            side.update(_fields("base", record.base))
            side["base_dtype"] = record.base_dtype
    names = sorted({*sides[0], *sides[1]})
    return [
        FieldDifference(name, sides[0].get(name), sides[1].get(name))
        for name in names
        if sides[0].get(name) != sides[1].get(name)
    ]


def overlaps(first: Adapter, second: Adapter) -> list[ModuleOverlap]:
    """The modules that both adapters change."""
    one, other = meaning_of(first).factors, meaning_of(second).factors
    return [_overlap(name, one[name], other[name]) for name in one if name in other and _fit(one[name], other[name])]


def _fit(one: Factors, other: Factors) -> bool:
    return bool(one.a.shape[1] == other.a.shape[1] and one.b.shape[0] == other.b.shape[0])


def _overlap(name: str, one: Factors, other: Factors) -> ModuleOverlap:
    sizes = (_inner(one, one) * _inner(other, other)) ** 0.5
    bases = [_directions(one), _directions(other)]
    inputs, outputs = (_similarity(bases[0][side], bases[1][side]) for side in (0, 1))
    cosine = _inner(one, other) / sizes if sizes else None
    return ModuleOverlap(name, *place_of(name), (one.rank, other.rank), cosine, inputs, outputs)


def _inner(one: Factors, other: Factors) -> float:
    """The sum of the products of two updates' numbers, without making either: tr(A₁ᵀB₁ᵀB₂A₂)."""
    return float(np.sum((one.b.T @ other.b) * (one.a @ other.a.T))) * one.scaling * other.scaling


def _directions(factors: Factors) -> tuple[Doubles, Doubles]:
    """Orthonormal input directions [in, k] and output directions [out, k] of an update; k is its true rank."""
    left, values, right = factors.svd()
    used = values > values.max(initial=0) * _NOISE
    return right.T[:, used], left[:, used]


def _similarity(one: Doubles, other: Doubles) -> float | None:
    smaller = min(one.shape[1], other.shape[1])
    return float(np.sum((one.T @ other) ** 2)) / smaller if smaller else None


def _fields(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every leaf of nested mappings, by its dotted name."""
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict) and value:
            yield from _fields(name, value)
        else:
            yield name, value
