"""The weights of a merged model, each made when it is asked for from the base's file and the adapter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftkit.adapters.files import Adapter, Floats, Meaning, meaning_of
from peftkit.adapters.target import HeldBase
from peftkit.errors import RunError, TargetError
from peftkit.models.base import BaseWeights, StoredWeight
from peftkit.models.dtypes import float32_modules
from peftkit.models.quantization import backend_of
from peftkit.recipe.quantizers import check_available

__all__ = ["MergedWeights"]


class MergedWeights:
    """The checkpoint of a base with an adapter in it, under the names of the base's own files."""

    def __init__(self, held: HeldBase, adapter: Adapter | None, dtype: torch.dtype, *, original: bool) -> None:
        """Plan the merge; `original` takes the base's weights as its files have them, not as training held them.

        Raises:
            TargetError: the adapter changes what is no tensor of its own in the base's files.
        """
        self.structure = structure = held.structure()
        self._modules: dict[str, Any] = dict(structure.named_modules())
        self._base = BaseWeights(held.base.folder, structure)
        self._dtype = dtype
        self._held: torch.dtype | None = None if original else getattr(torch, held.dtype)
        self._exact = frozenset(float32_modules(structure, held.dtype))
        self._rounding: dict[str, Any] = {}
        if held.quantization and not original:
            check_available(held.quantization.backend)
            self._backend = backend_of(held.quantization)
            self._rounding = self._backend.prepared(held.structure(), held.quantization, held.dtype)
        meaning = meaning_of(adapter) if adapter else Meaning({}, {})
        saved_modules = (adapter.config.get("modules_to_save") if adapter else None) or []
        tied: dict[str, str] = getattr(structure, "all_tied_weights_keys", None) or {}
        pairs = [pair for name, partner in tied.items() for pair in ((name, partner), (partner, name))]
        self.unties = any(_is_parted(meaning.whole, *pair, saved_modules) for pair in tied.items())
        """Whether the adapter gives input embedding and head, which the base ties, a matrix each."""

        self._updates = meaning.updates
        self._whole = meaning.whole if self.unties else _shared(meaning.whole, pairs)
        self._sources = {weight.name: weight for weight in self._base.stored}
        if self.unties:
            self._sources |= {name: self._half(name, partner) for name, partner in pairs if not self._base.find(name)}
        self._check({} if self.unties else dict(pairs))

    @property
    def words(self) -> int | None:
        """Size of the vocabulary, where the adapter brings an input embedding of its own."""
        table = self.structure.get_input_embeddings()
        name = next(name for name, module in self._modules.items() if module is table)
        whole = self._whole.get(f"{name}.weight")
        return None if whole is None else int(whole.shape[0])

    @property
    def outline(self) -> dict[str, torch.Tensor]:
        """Every tensor on the meta device, in the order of the base's files."""
        return {name: self._planned(weight) for name, weight in self._sources.items()}

    @torch.no_grad()
    def make(self, name: str) -> torch.Tensor:
        """The tensor of a name.

        Raises:
            RunError: it holds numbers that are not finite, or that are too large for the number type.
        """
        weight = self._sources[name]
        tensor = self._base.read(weight)
        made = self._merged(weight, tensor)
        if made is tensor or not weight.is_float:
            return tensor
        if not all(map(math.isfinite, map(float, made.aminmax()))):  # without a second tensor, as isfinite makes
            kind = str(self._dtype).removeprefix("torch.")
            what = f"{name} would hold numbers that are not finite in {kind}."
            remedy = "Merge with --dtype float32 or bfloat16; if that fails too, the base is damaged."
            raise RunError(what, remedy=remedy)
        return made

    def _merged(self, weight: StoredWeight, tensor: torch.Tensor) -> torch.Tensor:
        """What the base's tensor becomes; the same object where nothing changes."""
        if not weight.is_float:
            return tensor
        module, _, kind = (weight.parameter or "").rpartition(".")
        if weight.parameter in self._whole:
            held = torch.from_numpy(self._whole[weight.parameter])
        else:
            held = tensor if self._held is None else tensor.to(torch.float32 if module in self._exact else self._held)
        changed = self._changed(held, module) if kind == "weight" else self._shifted(held, module, kind)
        return changed.to(self._dtype)

    def _changed(self, tensor: torch.Tensor, module: str) -> torch.Tensor:
        """A weight, rounded as the base's quantisation does and with its update added."""
        update = self._updates.get(module)
        layer = self._rounding.get(module)
        if update is None and layer is None:
            return tensor
        turned = self._base.is_transposed(module)
        if layer is not None:
            rounded = self._backend.rounded(layer, tensor.T if turned else tensor)
            tensor = rounded.T if turned else rounded
        if update is None:
            return tensor
        return torch.from_numpy(update.adapted(tensor.float().numpy(), turned=turned))

    def _shifted(self, tensor: torch.Tensor, module: str, kind: str) -> torch.Tensor:
        """A bias as a layer with the adapter adds it."""
        update = self._updates.get(module)
        if kind != "bias" or update is None:
            return tensor
        bias = update.adapted_bias(tensor.float().numpy())
        return tensor if bias is None else torch.from_numpy(bias)

    def _planned(self, weight: StoredWeight) -> torch.Tensor:
        whole = self._whole.get(weight.parameter or "")
        shape = weight.shape if whole is None else whole.shape
        dtype = self._dtype if weight.is_float else self._base.read(weight).dtype
        return torch.empty(shape, dtype=dtype, device="meta")

    def _half(self, name: str, partner: str) -> StoredWeight:
        """The tensor that a tied parameter begins as when it gets one of its own."""
        stored = self._base.find(partner)
        if stored is None:
            raise _not_there(name)
        return replace(stored, parameter=name)

    def _check(self, tied: Mapping[str, str]) -> None:
        """See that every change has its place among the base's tensors, of two tied ones in either."""
        there = {weight.parameter for weight in self._sources.values()}
        for name in (*self._whole, *(f"{module}.weight" for module in (*self._updates, *self._rounding))):
            if name not in there and tied.get(name) not in there:
                raise _not_there(name)
        for module, update in self._updates.items():
            if not isinstance(self._modules[module], nn.Linear | Conv1D | nn.Embedding):
                raise _not_there(f"{module}.weight", "is of a kind that peftkit does not merge")
            if update.needs_bias and f"{module}.bias" not in there:
                raise _not_there(f"{module}.bias")
            if update.unmergeable:
                raise _not_there(f"{module}.weight", update.unmergeable)


def _is_parted(whole: Mapping[str, Floats], name: str, partner: str, saved_modules: Iterable[str]) -> bool:
    """Whether two tied parameters no longer are one: a copy of one was trained, or each has become its own."""
    one, other = whole.get(name), whole.get(partner)
    if one is not None and other is not None:
        return one.shape != other.shape or not bool((one == other).all())
    trained = name if one is not None else partner
    ends = [module for module in saved_modules if f".{trained}".endswith(f".{module}.weight")]
    return (one is not None or other is not None) and bool(ends)


def _shared(whole: Mapping[str, Floats], pairs: Iterable[tuple[str, str]]) -> dict[str, Floats]:
    """What takes a parameter's place takes that of its tied partner too."""
    return {**{name: whole[partner] for name, partner in pairs if partner in whole}, **whole}


def _not_there(name: str, why: str = "is no tensor of its own in the base's files") -> TargetError:
    return TargetError(
        f"{why}, so that nothing can be merged into it.", where=name, remedy="Use the adapter with PEFT."
    )
