"""What is done with adapters beside merging: looked into, checked, compared, added, made smaller."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit import console
from peftkit.adapters.base import AS_RECORDED, Footing, GivenBase, check_fit, find_footing, put_adapter
from peftkit.adapters.card import model_card
from peftkit.adapters.combine import Compressed, check_addable, compress, made_from, products_of, sum_of, write_adapter
from peftkit.adapters.compare import FieldDifference, ModuleOverlap, field_differences, overlaps
from peftkit.adapters.files import Adapter, Floats, copy_tokenizer, has_tokenizer, meaning_of, read_adapter
from peftkit.adapters.inspect import ModuleUpdate, WholeUpdate, inspect_modules, inspect_whole
from peftkit.adapters.proof import Agreement, compare, logits_of
from peftkit.adapters.sample import SAMPLE_NAME, Sample
from peftkit.adapters.soundness import check_sound, not_finite
from peftkit.errors import PeftkitError, TargetError
from peftkit.models.base import BaseWeights, is_transposed
from peftkit.models.methods.lora import Factors
from peftkit.runs.folder import CARD_NAME
from peftkit.shortage import memory_for
from peftkit.storage import atomic_folder, write_text

__all__ = [
    "AdapterReport", "Combined", "Difference", "combine_adapters", "diff_adapters", "inspect_adapter", "shrink_adapter",
]  # fmt: skip


@dataclass(frozen=True)
class AdapterReport:
    """What is in an adapter."""

    adapter: str
    base: str | None
    method: str | None
    parameters: int
    bytes: int
    use_dora: bool
    not_finite: list[str]
    """Tensors with a NaN or an infinity."""

    untouched: list[str]
    """Modules whose update is as it was before training."""

    beginning: str
    """What such an update is, as `its B is all zeros`."""

    modules: list[ModuleUpdate]
    whole: list[WholeUpdate]
    base_at_hand: bool
    """Whether the sizes of the base's own weights, which `relative_norm` is to, could be measured."""


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


@dataclass(frozen=True)
class Combined:
    """An adapter that was made of others."""

    output: str
    ranks: list[int]
    """Of its modules, each once."""

    bytes: int
    error: float | None
    """‖ΔW - ΔW'‖ / ‖ΔW‖ over all modules; None where nothing was left out."""

    worst_module: str | None
    worst_error: float | None
    logits: Agreement | None
    """Of a smaller adapter against the one that it was made from."""


def inspect_adapter(folder: Path, given: GivenBase = AS_RECORDED) -> AdapterReport:
    """Measure every update of an adapter, against the base's weights where these are at hand.

    Raises:
        TargetError: it cannot be read.
    """
    adapter = read_adapter(folder)
    broken = not_finite(adapter)
    if broken:  # there is nothing to measure in them
        return _report(adapter, broken, [], [], base_at_hand=False)
    weight_of = _weight_reader(adapter, given)
    modules = inspect_modules(adapter, weight_of or (lambda _: None))
    whole = inspect_whole(adapter, weight_of or (lambda _: None))
    return _report(adapter, broken, modules, whole, base_at_hand=weight_of is not None)


def diff_adapters(first: Path, second: Path, given: GivenBase = AS_RECORDED) -> Difference:
    """Compare two adapters: settings, directions, and what they say.

    Raises:
        TargetError: one of them cannot be opened.
    """
    one, other = read_adapter(first), read_adapter(second)
    sample, said = _said(one, given)
    _, said_by_other = _said(other, given, sample)
    if said[0].shape != said_by_other[0].shape:
        raise TargetError(
            f"has another vocabulary than {first}.", where=str(second), remedy="Compare adapters of like bases."
        )
    modules = [set(meaning_of(adapter).updates) for adapter in (one, other)]
    return Difference(
        fields=field_differences(one, other),
        modules=overlaps(one, other),
        only_first=sorted(modules[0] - modules[1]),
        only_second=sorted(modules[1] - modules[0]),
        logits=compare(said_by_other, said, sample),
    )


def combine_adapters(parts: Sequence[tuple[Path, float]], output: Path, rank: int | None = None) -> Combined:
    """Write the weighted sum of adapters as one, exactly, or with `rank` as nearly as that rank allows.

    Raises:
        TargetError: they cannot be added.
    """
    adapters = [read_adapter(folder) for folder, _ in parts]
    for adapter in adapters:
        check_sound(adapter)
    check_addable(adapters)
    weights = [weight for _, weight in parts]
    updates = [products_of(adapter) for adapter in adapters]
    total = sum_of(list(zip(updates, weights, strict=True)))
    made_of = made_from(adapters, weights)
    if rank is None:
        return _combined(output, _ship(output, adapters[0], total, made_of), None)
    smaller = compress(total, rank)
    return _combined(output, _ship(output, adapters[0], smaller.factors, made_of), smaller)


def shrink_adapter(folder: Path, output: Path, rank: int, given: GivenBase = AS_RECORDED) -> Combined:
    """Write an adapter's nearest one of a lower rank, and measure what it says against what the first one says.

    Raises:
        TargetError: it cannot be opened, or has no higher rank.
    """
    adapter = read_adapter(folder)
    factors = products_of(adapter)
    highest = max((each.rank for each in factors.values()), default=0)
    if rank >= highest:
        raise TargetError(f"has no rank above {highest}.", where=str(folder), remedy=f"Choose one below {highest}.")
    sample, said = _said(adapter, given)
    smaller = compress(factors, rank)
    written = _ship(output, adapter, smaller.factors, made_from([adapter], [1.0]))
    _, said_by_smaller = _said(written, given, sample)
    return _combined(output, written, smaller, compare(said_by_smaller, said, sample))


def _said(adapter: Adapter, given: GivenBase, sample: Sample | None = None) -> tuple[Sample, list[Any]]:
    """A sample, the adapter's own unless one is given, and its logits on its base."""
    footing = find_footing(adapter, given)
    check_fit(adapter, footing)
    model = put_adapter(footing.load("cpu"), adapter)
    words = model.get_input_embeddings().weight.shape[0]
    sample = sample or Sample.read(adapter.folder, words)
    with memory_for("the logits of its sample", where=str(adapter.folder), remedy="Free memory that others use."):
        return sample, logits_of(model, sample)


def _weight_reader(adapter: Adapter, given: GivenBase) -> Callable[[str], Floats | None] | None:
    """Reads the base's parameters by name, weights as [out, in]; None where the base is not at hand."""
    try:
        footing: Footing = find_footing(adapter, given)
    except PeftkitError as error:
        console.warning(f"{error} Without the base, its weights cannot be compared with.")
        return None
    structure = footing.structure()
    modules = dict(structure.named_modules())
    weights = BaseWeights(footing.base.folder, structure)

    def weight_of(name: str) -> Floats | None:
        stored = weights.find(name)
        if stored is None:
            return None
        numbers = weights.read(stored).float()
        module, _, kind = name.rpartition(".")
        turned = kind == "weight" and is_transposed(modules[module])
        array: Floats = (numbers.T if turned else numbers).numpy()
        return array

    return weight_of


def _report(
    adapter: Adapter, broken: list[str], modules: list[ModuleUpdate], whole: list[WholeUpdate], *, base_at_hand: bool
) -> AdapterReport:
    record = adapter.record
    return AdapterReport(
        adapter=str(adapter.folder),
        base=record.base["model"] if record else adapter.config.get("base_model_name_or_path"),
        method=record.recipe.method if record else None,
        parameters=adapter.parameters,
        bytes=adapter.bytes,
        use_dora=bool(adapter.config.get("use_dora")),
        not_finite=broken,
        untouched=[module.module for module in modules if module.untouched],
        beginning=adapter.method.beginning,
        modules=modules,
        whole=whole,
        base_at_hand=base_at_hand,
    )


def _ship(output: Path, like: Adapter, factors: Mapping[str, Factors], made_of: list[dict[str, Any]]) -> Adapter:
    """Write an adapter with what belongs beside it: tokenizer, sample and card of the one it was made from."""
    with atomic_folder(output) as folder:
        written = write_adapter(folder, like, factors, made_of)
        if has_tokenizer(like.folder):
            copy_tokenizer(like.folder, folder)
        if (like.folder / SAMPLE_NAME).is_file():
            shutil.copyfile(like.folder / SAMPLE_NAME, folder / SAMPLE_NAME)
        if written.record:
            write_text(folder / CARD_NAME, model_card(written.record))
    return read_adapter(output)


def _combined(output: Path, written: Adapter, smaller: Compressed | None, logits: Agreement | None = None) -> Combined:
    worst = max(smaller.errors, key=lambda module: smaller.errors[module]) if smaller and smaller.errors else None
    return Combined(
        output=str(output),
        ranks=sorted({factors.rank for factors in products_of(written).values()}),
        bytes=written.bytes,
        error=smaller.error if smaller else None,
        worst_module=worst,
        worst_error=smaller.errors[worst] if smaller and worst else None,
        logits=logits,
    )
