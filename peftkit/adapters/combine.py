"""Adapters made of adapters: a weighted sum, exact, and the best of a lower rank."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from peftkit.adapters.card import model_card
from peftkit.adapters.compare import logits_on_base
from peftkit.adapters.files import (
    AS_RECORDED,
    CONFIG_NAME,
    RECORD_NAME,
    WEIGHTS_NAME,
    Adapter,
    Floats,
    GivenBase,
    copy_tokenizer,
    has_tokenizer,
)
from peftkit.adapters.proof import SAMPLE_NAME, Agreement, compare
from peftkit.errors import TargetError
from peftkit.models.methods.lora import Factors, folded
from peftkit.runs.folder import CARD_NAME
from peftkit.storage import atomic_folder, write_json, write_text

__all__ = [
    "Combined", "Compressed", "check_addable", "combine_adapters", "compress", "made_from", "products_of",
    "shrink_adapter", "sum_of", "sum_of_adapters", "write_adapter",
]  # fmt: skip


@dataclass(frozen=True)
class Compressed:
    """Updates cut to a lower rank, and what that lost."""

    factors: dict[str, Factors]
    errors: dict[str, float]
    """By module: ‖ΔW - ΔW'‖ / ‖ΔW‖, of Frobenius norms."""

    error: float
    """The same over all modules together."""


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


def combine_adapters(parts: Sequence[tuple[Path, float]], output: Path, rank: int | None = None) -> Combined:
    """Write the weighted sum of adapters as one, exactly, or with `rank` as nearly as that rank allows.

    Raises:
        TargetError: they cannot be added.
    """
    adapters = [Adapter.read(folder) for folder, _ in parts]
    for adapter in adapters:
        adapter.check_sound()
    weights = [weight for _, weight in parts]
    total = sum_of_adapters(adapters, weights)
    return _ship(output, adapters[0], total, made_from(adapters, weights), rank)


def shrink_adapter(folder: Path, output: Path, rank: int, given: GivenBase = AS_RECORDED) -> Combined:
    """Write an adapter's nearest one of a lower rank, and measure what it says against what the first one says.

    Raises:
        TargetError: it cannot be opened, or has no higher rank.
    """
    adapter = Adapter.read(folder)
    factors = products_of(adapter)
    highest = max((each.rank for each in factors.values()), default=0)
    if rank >= highest:
        raise TargetError(f"has no rank above {highest}.", where=str(folder), remedy=f"Choose one below {highest}.")
    sample, said = logits_on_base(adapter, given)
    made = _ship(output, adapter, factors, made_from([adapter], [1.0]), rank)
    _, said_by_smaller = logits_on_base(Adapter.read(output), given, sample)
    return replace(made, logits=compare(said_by_smaller, said, sample))


def products_of(adapter: Adapter) -> dict[str, Factors]:
    """An adapter's updates, by module, where all of them are products of two matrices.

    Raises:
        TargetError: they are not.
    """
    updates = adapter.updates
    products = {module: each for module, each in updates.items() if isinstance(each, Factors)}
    if len(products) < len(updates):
        what = f"is {adapter.method.adapter}, which has no ranks."
        raise TargetError(what, where=str(adapter.folder), remedy="Only LoRA adapters can be added or shrunk.")
    return products


def sum_of_adapters(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Factors]:
    """The weighted sum of what several adapters do, by module; see `sum_of`.

    Raises:
        TargetError: they were trained on different bases, or are more than sums of products.
    """
    check_addable(adapters)
    return sum_of(list(zip(map(products_of, adapters), weights, strict=True)))


def sum_of(parts: Sequence[tuple[Mapping[str, Factors], float]]) -> dict[str, Factors]:
    """The weighted sum of several adapters' updates: their matrices side by side, so that nothing is lost.

    Σ wᵢ sᵢ BᵢAᵢ is [w₁s₁B₁ w₂s₂B₂ …] times the Aᵢ on top of each other; the ranks add up.

    Raises:
        TargetError: two of them see a module in different shapes.
    """
    total: dict[str, Factors] = {}
    for factors, weight in parts:
        for module, each in factors.items():
            scaled = folded(each, weight)
            total[module] = _beside(module, total[module], scaled) if module in total else scaled
    return total


def check_addable(adapters: Sequence[Adapter]) -> None:
    """See that adapters were trained on one base and are nothing but sums of products.

    Raises:
        TargetError: one is not.
    """
    first = adapters[0]
    for adapter in adapters:
        extra = next((each.beyond_product for each in adapter.updates.values() if each.beyond_product), None)
        own = [f"{name}, which was trained whole" for name in adapter.whole]
        own += [f"rows of {name}, which were trained alone" for name in adapter.rows]
        extra = extra or next(iter(own), None)
        if extra:
            what = f"has {extra}; a sum of adapters is exact only for their products."
            raise TargetError(what, where=str(adapter.folder), remedy="Merge it alone.")
        if _base_of(adapter) != _base_of(first):
            what = f"was trained on another base than {first.folder}, or on one quantised in another way."
            remedy = "Only adapters that were trained on the same weights can be added."
            raise TargetError(what, where=str(adapter.folder), remedy=remedy)


def compress(factors: Mapping[str, Factors], rank: int) -> Compressed:
    """The nearest updates of at most `rank`, by singular value decomposition (Eckart and Young 1936).

    PEFT's `add_weighted_adapter` gives the same from the product of the matrices, which takes a hundred times as long,
    and only on a loaded base.
    """
    kept: dict[str, Factors] = {}
    errors: dict[str, float] = {}
    lost_squared = total_squared = 0.0
    for module, given in factors.items():
        each = folded(given)
        left, values, right = each.svd()
        root = np.sqrt(values[:rank])
        b, a = left[:, :rank] * root, right[:rank] * root[:, None]
        kept[module] = replace(each, a=a.astype(np.float32), b=b.astype(np.float32))
        lost, size = float(np.sum(values[rank:] ** 2)), float(np.sum(values**2))
        errors[module] = (lost / size) ** 0.5 if size else 0.0
        lost_squared, total_squared = lost_squared + lost, total_squared + size
    return Compressed(kept, errors, (lost_squared / total_squared) ** 0.5 if total_squared else 0.0)


def made_from(adapters: Sequence[Adapter], weights: Sequence[float]) -> list[dict[str, Any]]:
    """What the record of a combined adapter says about its parts."""
    pairs = zip(adapters, weights, strict=True)
    return [{"adapter": adapter.name, "weight": weight, "sha256": adapter.sha256} for adapter, weight in pairs]


def write_adapter(
    folder: Path, like: Adapter, factors: Mapping[str, Factors], made_from: list[dict[str, Any]]
) -> Adapter:
    """Write updates as an adapter that PEFT opens, with the other settings and the record of the first it is made from.

    The scaling is in the matrices: every module's `lora_alpha` is its rank. What was trained whole is carried over.
    """
    carried = [name for name in like.tensors if like.part_of(name)[1] not in like.method.parts]
    tensors: dict[str, Floats] = {name: like.tensors[name].array() for name in carried}
    for module, each in factors.items():
        tensors |= each.tensors(module)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS_NAME)
    config = _config(like.config, factors)
    write_json(folder / CONFIG_NAME, config)
    if like.record:
        written = replace(Adapter.read(folder), record=None)
        changed = {"r": config["r"], "lora_alpha": config["lora_alpha"], "use_rslora": False}
        lora = like.record.recipe.lora.model_copy(update=changed)
        record = replace(
            like.record,
            recipe=like.record.recipe.model_copy(update={"lora": lora}),
            metrics={},
            made_from=made_from,
            adapter_config=config,
            tensors={name: tensor.sha256 for name, tensor in written.tensors.items()},
        )
        write_json(folder / RECORD_NAME, record.to_json())
    return Adapter.read(folder)


def _base_of(adapter: Adapter) -> tuple[Any, ...]:
    """What must be equal for two adapters to be on the same weights."""
    record = adapter.record
    if record is None:
        return (adapter.config.get("base_model_name_or_path"),)
    return (record.base["sha256"], record.base_dtype, record.recipe.base_quantization)


def _beside(module: str, one: Factors, other: Factors) -> Factors:
    if one.a.shape[1] != other.a.shape[1] or one.b.shape[0] != other.b.shape[0]:
        raise TargetError("has different shapes in the adapters.", where=module, remedy="They are of different models.")
    return replace(one, a=np.concatenate([one.a, other.a]), b=np.concatenate([one.b, other.b], axis=1))


def _config(config: dict[str, Any], factors: Mapping[str, Factors]) -> dict[str, Any]:
    ranks = {module: each.rank for module, each in sorted(factors.items())}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    own = {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": dict(others)}
    unused = dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    kind = {"use_rslora": False, "init_lora_weights": True}
    return {**config, **own, "target_modules": list(ranks), **unused, **kind}


def _ship(
    output: Path, like: Adapter, factors: Mapping[str, Factors], made_of: list[dict[str, Any]], rank: int | None
) -> Combined:
    """Write an adapter, cut to a rank if one is given, with tokenizer, sample and card of the one it was made from."""
    smaller = None if rank is None else compress(factors, rank)
    with atomic_folder(output) as folder:
        written = write_adapter(folder, like, smaller.factors if smaller else factors, made_of)
        if has_tokenizer(like.folder):
            copy_tokenizer(like.folder, folder)
        if (like.folder / SAMPLE_NAME).is_file():
            shutil.copyfile(like.folder / SAMPLE_NAME, folder / SAMPLE_NAME)
        if written.record:
            write_text(folder / CARD_NAME, model_card(written.record))
    ranks = sorted({each.rank for each in products_of(written).values()})
    error, errors = (smaller.error, smaller.errors) if smaller else (None, {})
    worst = max(errors, key=lambda module: errors[module], default=None)
    return Combined(str(output), ranks, written.bytes, error, worst, errors[worst] if worst else None, None)
