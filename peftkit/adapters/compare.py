"""Two adapters side by side: their settings, and where their updates point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peftkit.adapters.files import Adapter, meaning_of, place_of

__all__ = ["FieldDifference", "ModuleOverlap", "field_differences", "overlaps"]


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
    ranks: tuple[int | None, int | None]
    """None for an update that is no product of two matrices."""

    cosine: float | None
    """Of the angle between the two updates, taken as vectors: 1 the same direction, 0 none in common."""

    input_overlap: float | None
    """Share that the input directions they read have in common, from 0 to 1: the similarity of Hu et al. 2021,
    section 7.2, at both full ranks. It and the next are None where an update is zero or no product."""

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
    one, other = meaning_of(first).updates, meaning_of(second).updates
    pairs = ((name, one[name], other[name]) for name in one if name in other)
    return [
        ModuleOverlap(name, *place_of(name), (ours.rank, theirs.rank), overlap.cosine, overlap.inputs, overlap.outputs)
        for name, ours, theirs in pairs
        if (overlap := ours.overlap(theirs)) is not None
    ]


def _fields(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every leaf of nested mappings, by its dotted name."""
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict) and value:
            yield from _fields(name, value)
        else:
            yield name, value
