"""Adapters compared: one with its record and its base, to verify it, and two with each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftkit.adapters.files import AS_RECORDED, Adapter, GivenBase
from peftkit.adapters.inspect import place_of
from peftkit.adapters.proof import Agreement, Sample, compare, logits_of
from peftkit.adapters.target import HeldBase, check_fit, find_held_base, fit_vocabulary, put_adapter
from peftkit.errors import MemoryRunError, PeftkitError, TargetError
from peftkit.runs.folder import CARD_NAME
from peftkit.runs.verify import Check
from peftkit.shortage import memory_for
from peftkit.storage import manifest_faults

__all__ = [
    "Difference", "FieldDifference", "ModuleOverlap", "check_adapter", "diff_adapters", "field_differences",
    "logits_on_base", "overlaps",
]  # fmt: skip


@dataclass(frozen=True)
class FieldDifference:
    """A setting in which two adapters differ; None is what one of them has not."""

    field: str
    first: Any
    second: Any


@dataclass(frozen=True)
class ModuleOverlap:
    """How alike two adapters' updates of one module are; see `Overlap`."""

    module: str
    layer: int | None
    target: str
    ranks: tuple[int | None, int | None]
    """None for an update that is no product of two matrices."""

    cosine: float | None
    input_overlap: float | None
    output_overlap: float | None


@dataclass(frozen=True)
class Difference:
    """Where two adapters differ."""

    fields: list[FieldDifference]
    modules: list[ModuleOverlap]
    only_first: list[str]
    """Modules that only the first one changes."""

    only_second: list[str]
    logits: Agreement
    """What the second says, against what the first says, on the first one's sample."""


def check_adapter(folder: Path, given: GivenBase = AS_RECORDED) -> list[Check]:
    """Check an adapter's files, values and fingerprint, that it is its base's, and that it has an effect.

    What rests on a check that failed is not tried.

    Raises:
        TargetError: the folder holds no adapter that can be read.
        MemoryRunError: its base does not fit into memory.
    """
    adapter = Adapter.read(folder)
    checks = [_files(folder), _values(adapter), *_fingerprint(adapter), _learnt(adapter)]
    if all(check.passed is not False for check in checks):
        checks += _on_its_base(adapter, given)
    return checks


def _files(folder: Path) -> Check:
    faults = manifest_faults(folder, editable=(CARD_NAME,))
    if faults is None:
        return Check("files", None, "no manifest.json says what they were")
    return Check("files", not faults, "; ".join(faults) or "as they were written")


def _values(adapter: Adapter) -> Check:
    broken = adapter.not_finite
    detail = f"not finite in {', '.join(broken[:3])}" if broken else f"{adapter.parameters:,} numbers, all finite"
    return Check("values", not broken, detail)


def _fingerprint(adapter: Adapter) -> Iterator[Check]:
    for name, changes in (("settings", adapter.config_changes), ("tensors", adapter.tensor_changes)):
        if adapter.record is None:
            yield Check(name, None, "no peftkit.json says what they were")
        else:
            yield Check(name, not changes, "; ".join(changes[:3]) or "as they were saved")


def _learnt(adapter: Adapter) -> Check:
    updates = adapter.updates
    untouched = [module for module, each in updates.items() if each.untouched]
    if updates and len(untouched) == len(updates):
        return Check("training", False, f"of every module, {adapter.method.beginning}, as before training")
    detail = f"{len(updates) - len(untouched)} of {len(updates)} modules have left their beginning"
    return Check("training", True, detail)


def _on_its_base(adapter: Adapter, given: GivenBase) -> Iterator[Check]:
    try:
        held = find_held_base(adapter, given)
    except PeftkitError as error:
        unknown = adapter.record is None and given.model is None
        yield Check("base", None if unknown else False, error.what)
        return
    known = adapter.record is not None
    whose = "the very one that it was trained on" if known else "which one it was trained on is not recorded"
    yield Check("base", True if known else None, f"{held.base.reference}: {whose}")
    try:
        check_fit(adapter, held)
    except PeftkitError as error:
        yield Check("fit", False, error.what)
        return
    yield Check("fit", True, f"{len(adapter.tensors)} tensors, just those that its settings call for")
    yield _effect(adapter, held)


def _effect(adapter: Adapter, held: HeldBase) -> Check:
    """Whether the adapter changes what its base says."""
    model = held.load("cpu")
    fit_vocabulary(model, adapter)
    sample = Sample.read(adapter.folder, model.get_input_embeddings().num_embeddings)
    try:
        with memory_for("the logits of its sample", where=str(adapter.folder), remedy="Free memory that others use."):
            before = logits_of(model, sample)
            change = compare(logits_of(put_adapter(model, adapter), sample), before, sample)
    except MemoryRunError:
        raise  # it says nothing about the adapter
    except PeftkitError as error:
        return Check("effect", False, error.what)
    detail = f"on {change.tokens:,} tokens of {change.sample}, logits move by {change.relative_error:.1%}"
    if change.expected_perplexity is not None:
        detail += f", perplexity {change.expected_perplexity:,.4g} → {change.found_perplexity:,.4g}"
    return Check("effect", change.largest_difference > 0, detail)


def diff_adapters(first: Path, second: Path, given: GivenBase = AS_RECORDED) -> Difference:
    """Compare two adapters: settings, directions, and what they say.

    Raises:
        TargetError: one of them cannot be opened.
    """
    one, other = Adapter.read(first), Adapter.read(second)
    sample, said = logits_on_base(one, given)
    _, said_by_other = logits_on_base(other, given, sample)
    if said[0].shape != said_by_other[0].shape:
        what = f"has another vocabulary than {first}."
        raise TargetError(what, where=str(second), remedy="Compare adapters of like bases.")
    updates = [adapter.updates for adapter in (one, other)]
    only_first, only_second = sorted({*updates[0]} - {*updates[1]}), sorted({*updates[1]} - {*updates[0]})
    logits = compare(said_by_other, said, sample)
    return Difference(field_differences(one, other), overlaps(one, other), only_first, only_second, logits)


def field_differences(first: Adapter, second: Adapter) -> list[FieldDifference]:
    """The settings that differ: of the recipes, where both are recorded, and of the adapters' configurations."""
    sides = [dict(_fields("adapter_config", adapter.config)) for adapter in (first, second)]
    if first.record and second.record:
        for side, record in zip(sides, (first.record, second.record), strict=True):
            side.update(_fields("", record.to_json()["recipe"]))
            side.update(_fields("base", record.base))
            side["base_dtype"] = record.base_dtype
    both = [FieldDifference(name, *(side.get(name) for side in sides)) for name in sorted({*sides[0], *sides[1]})]
    return [field for field in both if field.first != field.second]


def overlaps(first: Adapter, second: Adapter) -> list[ModuleOverlap]:
    """The modules that both adapters change."""
    one, other = first.updates, second.updates
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


def logits_on_base(
    adapter: Adapter, given: GivenBase, sample: Sample | None = None
) -> tuple[Sample, list[torch.Tensor]]:
    """A sample, the adapter's own unless one is given, and its logits on its base.

    Raises:
        TargetError: the adapter cannot be put on its base.
        MemoryRunError: the logits do not fit into memory.
    """
    held = find_held_base(adapter, given)
    check_fit(adapter, held)
    model = put_adapter(held.load("cpu"), adapter)
    sample = sample or Sample.read(adapter.folder, model.get_input_embeddings().weight.shape[0])
    with memory_for("the logits of its sample", where=str(adapter.folder), remedy="Free memory that others use."):
        return sample, logits_of(model, sample)
