"""The weights of a merged model, each made from the base's file and the adapter when its turn comes to be written.

The library's own writer wants all of a file in memory. The format of safetensors is a length, a JSON header of names,
types, shapes and offsets, and then the numbers (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftkit.adapters.files import Adapter, Floats
from peftkit.adapters.target import HeldBase
from peftkit.errors import RunError, TargetError
from peftkit.models.attach import embedding_modules
from peftkit.models.base import BaseWeights, StoredWeight
from peftkit.models.dtypes import float32_modules
from peftkit.models.methods import TrainedRows, Update
from peftkit.models.quantization import backend_of
from peftkit.recipe.quantizers import check_available
from peftkit.storage import write_json

__all__ = ["MergedWeights", "write_shards"]

_TYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


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
        self._updates, whole = (adapter.updates, adapter.whole) if adapter else ({}, {})
        saved_modules = (adapter.config.get("modules_to_save") if adapter else None) or []
        tied: dict[str, str] = getattr(structure, "all_tied_weights_keys", None) or {}
        pairs = [pair for name, partner in tied.items() for pair in ((name, partner), (partner, name))]
        self.unties = any(_is_parted(whole, *pair, saved_modules) for pair in tied.items())
        """Whether the adapter gives input embedding and head, which the base ties, a matrix each."""

        # what takes a parameter's place takes that of its tied partner too
        shared = {name: whole[partner] for name, partner in pairs if partner in whole}
        self._whole = whole if self.unties else {**shared, **whole}
        self._own_rows = rows = adapter.rows if adapter else {}
        self._rows = {**{name: rows[partner] for name, partner in pairs if partner in rows}, **rows}
        self._sources = {weight.name: weight for weight in self._base.stored}
        if self.unties:
            self._sources |= dict(self._half(*pair) for pair in pairs if not self._base.find(pair[0]))
        self._remade: dict[str, torch.Tensor] = {}
        self._stacks = self._check({} if self.unties else dict(pairs))

    @property
    def vocabulary(self) -> int | None:
        """Size of the vocabulary, where the adapter brings an input embedding of its own, or rows of it."""
        name = f"{embedding_modules(self.structure)[0]}.weight"
        if name not in {*self._whole, *self._rows}:
            return None
        return self._shape(name, tuple(self.structure.get_parameter(name).shape))[0]

    @property
    def outline(self) -> dict[str, torch.Tensor]:
        """Every tensor on the meta device, in the order of the base's files."""
        return {name: self._planned(weight) for name, weight in self._sources.items()}

    @torch.no_grad()
    def make(self, name: str) -> torch.Tensor:
        """The tensor of a name.

        Raises:
            RunError: it holds numbers that are not finite, or that are too large for the dtype.
        """
        weight = self._sources[name]
        if weight.pattern and weight.parameter in self._stacks:
            if name not in self._remade:
                self._remade |= self._unstacked(weight.parameter)
            return self._remade.pop(name)
        tensor = self._base.read(weight)
        if weight.parameter is None or not weight.is_float:
            return tensor
        return self._finite(name, self._merged(weight.parameter, tensor))

    def _finite(self, name: str, made: torch.Tensor) -> torch.Tensor:
        if not all(map(math.isfinite, map(float, made.aminmax()))):  # without a second tensor, as isfinite makes
            kind = str(self._dtype).removeprefix("torch.")
            what = f"{name} would hold numbers that are not finite in {kind}."
            remedy = "Merge with --dtype float32 or bfloat16; if that fails too, the base is damaged."
            raise RunError(what, remedy=remedy)
        return made

    def _unstacked(self, first: str) -> dict[str, torch.Tensor]:
        """The tensors of the base's file for a stack with what is merged into it, such as all experts of a layer."""
        stack = self._base.stacks[first]
        parameters = self._base.converted(first, (self._base.read(weight) for weight in stack))
        merged = {name: self._finite(name, self._merged(name, tensor)) for name, tensor in parameters.items()}
        return {name: tensor.contiguous() for name, tensor in self._base.reverted(merged).items()}

    def _merged(self, parameter: str, tensor: torch.Tensor) -> torch.Tensor:
        """What a parameter of the base becomes: rounded as its quantisation does, with its update."""
        module, _, kind = parameter.rpartition(".")
        layer, update = self._rounding.get(module), self._updates.get(module)
        if parameter in self._whole:
            tensor = torch.from_numpy(self._whole[parameter])
        elif self._held is not None:
            tensor = tensor.to(torch.float32 if module in self._exact else self._held)
        if rows := self._rows.get(parameter):
            table = tensor.new_zeros(self._shape(parameter, tuple(tensor.shape)))
            table[: len(tensor)] = tensor
            table[rows.ids] = torch.from_numpy(rows.values).to(table.dtype)  # rounded as the model computes with them
            tensor = table
        if kind == "weight" and (layer is not None or update is not None):
            turned = self._base.is_transposed(module)
            if layer is not None:
                rounded = self._backend.rounded(layer, tensor.T if turned else tensor)
                tensor = rounded.T if turned else rounded
            if update is not None:
                tensor = torch.from_numpy(update.adapted(tensor.float().numpy(), turned=turned))
        elif kind == "bias" and update is not None:
            bias = update.adapted_bias(tensor.float().numpy())  # as a layer with the adapter adds it
            tensor = tensor if bias is None else torch.from_numpy(bias)
        return tensor.to(self._dtype)

    def _planned(self, weight: StoredWeight) -> torch.Tensor:
        shape = weight.shape if weight.pattern else self._shape(weight.parameter or "", weight.shape)
        is_made = weight.is_float and weight.parameter is not None
        dtype = self._dtype if is_made else self._base.read(weight).dtype
        return torch.empty(shape, dtype=dtype, device="meta")

    def _shape(self, parameter: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What a parameter's shape becomes, given that of the base's."""
        whole, rows = self._whole.get(parameter), self._rows.get(parameter)
        shape = shape if whole is None else whole.shape
        return shape if rows is None else (max(shape[0], max(rows.ids) + 1), *shape[1:])

    def _half(self, name: str, partner: str) -> tuple[str, StoredWeight]:
        """The tensor that a tied parameter begins as when it gets one of its own, and its name in a file."""
        stored = self._base.find(partner)
        if stored is None:
            raise _not_there(name)
        (written,) = self._base.reverted({name: torch.empty(stored.shape, device="meta")})
        return written, replace(stored, parameter=name)

    def _check(self, tied: Mapping[str, str]) -> frozenset[str]:
        """See that the base's files have each parameter once, and that every change has its place among these.

        Of two tied parameters either will do. Gives the stacks that are changed.
        """
        known, base = self.structure.state_dict(), self._base
        made = {
            first: base.converted(first, (torch.empty(weight.shape, device="meta") for weight in stack))
            for first, stack in base.stacks.items()
        }
        singles = [weight for weight in self._sources.values() if weight.parameter and not weight.pattern]
        there = Counter([*(weight.parameter for weight in singles), *chain.from_iterable(made.values())])
        ignored = [re.compile(pattern) for pattern in self.structure._keys_to_ignore_on_load_missing or ()]
        for name in known:
            if there[name] > 1:
                raise _unaccounted(name, "several tensors")
            is_there = there[name] or there[tied.get(name)] or any(pattern.search(name) for pattern in ignored)
            if not is_there:
                raise _unaccounted(name, "no tensor")
        changed = {*self._whole, *self._rows, *(f"{module}.weight" for module in (*self._updates, *self._rounding))}
        for name in sorted(changed):
            if name not in known or not (there[name] or there[tied.get(name)]):
                raise _not_there(name)
        for weight in singles:
            if weight.parameter in changed and not (weight.is_float and weight.shape == known[weight.parameter].shape):
                raise _not_there(weight.parameter, "is in another form in the base's files, as if it were quantised")
        for module, update in self._updates.items():
            self._check_update(module, update, there)
        self._check_rows(tied)
        stacks = frozenset(first for first, parameters in made.items() if changed & {*parameters})
        for first in stacks:
            if {*base.reverted(made[first])} != {weight.name for weight in base.stacks[first]}:
                raise _not_there(first, "is in the base's files under names that Transformers would not save it under")
        return stacks

    def _check_rows(self, tied: Mapping[str, str]) -> None:
        own = f"{embedding_modules(self.structure)[0]}.weight"
        for name in self._own_rows:
            if tied.get(name) == own and not _are_same(self._own_rows, name, own):
                raise _not_there(name, f"has trained rows that {own} has not, the same tensor in the base's files")

    def _check_update(self, module: str, update: Update, there: Mapping[str | None, int]) -> None:
        if not isinstance(self._modules[module], nn.Linear | Conv1D | nn.Embedding):
            raise _not_there(f"{module}.weight", "is of a kind that peftkit does not merge")
        if update.needs_bias and not there[f"{module}.bias"]:
            raise _not_there(f"{module}.bias")
        if update.unmergeable:
            raise _not_there(f"{module}.weight", update.unmergeable)


def _are_same(rows: Mapping[str, TrainedRows], name: str, partner: str) -> bool:
    one, other = rows[name], rows.get(partner)
    return other is not None and one.ids == other.ids and bool((one.values == other.values).all())


def _is_parted(whole: Mapping[str, Floats], name: str, partner: str, saved_modules: Iterable[str]) -> bool:
    """Whether two tied parameters no longer are one: a copy of one was trained, or each has become its own."""
    one, other = whole.get(name), whole.get(partner)
    if one is not None and other is not None:
        return one.shape != other.shape or not bool((one == other).all())
    trained = name if one is not None else partner
    ends = [module for module in saved_modules if f".{trained}".endswith(f".{module}.weight")]
    return (one is not None or other is not None) and bool(ends)


def _not_there(name: str, why: str = "is no tensor of its own in the base's files") -> TargetError:
    what = f"{why}, so that nothing can be merged into it."
    return TargetError(what, where=name, remedy="Use the adapter with PEFT.")


def _unaccounted(name: str, found: str) -> TargetError:
    what = f"has {found} in the base's files, so that they cannot be written anew."
    return TargetError(what, where=name, remedy="Use a base that holds each weight once, as save_pretrained saves it.")


def write_shards(
    folder: Path, outline: Mapping[str, torch.Tensor], shard_bytes: int, make: Callable[[str], torch.Tensor]
) -> dict[str, str]:
    """Write a checkpoint in files as Transformers names them, asking for each tensor when its turn comes.

    Until its last tensor is written a file is shorter than its header says, so that no library opens it; the index of
    several files is written after them.

    Args:
        folder: where the files are written.
        outline: every tensor on the meta device, by name and in the order of writing.
        shard_bytes: largest size of a file; a tensor that is larger has a file of its own.
        make: the tensor of a name.

    Returns:
        The SHA-256 of each file of weights, computed while it is written.
    """
    split = split_torch_state_dict_into_shards({**outline}, max_shard_size=shard_bytes)
    hashes = {
        file: _write(folder / file, {name: outline[name] for name in names}, make)
        for file, names in split.filename_to_tensors.items()
    }
    if split.is_sharded:
        weight_map = dict(sorted(split.tensor_to_filename.items()))
        write_json(folder / "model.safetensors.index.json", {"metadata": split.metadata, "weight_map": weight_map})
    return hashes


def _write(place: Path, outline: Mapping[str, torch.Tensor], make: Callable[[str], torch.Tensor]) -> str:
    header = _header(outline)
    digest = hashlib.sha256(header)
    with place.open("wb") as file, ThreadPoolExecutor(max_workers=1) as beside:
        hashed = beside.submit(digest.update, b"")
        file.write(header)
        for name, planned in outline.items():
            tensor = make(name)
            if tensor.shape != planned.shape or tensor.dtype != planned.dtype:
                expected, found = (f"{each.dtype} {list(each.shape)}" for each in (planned, tensor))
                raise AssertionError(f"{name} was planned as {expected}, and is {found}")
            content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            hashed.result()  # of the tensor before, so that no more than two are in memory
            hashed = beside.submit(digest.update, content)
            file.write(content)
    return digest.hexdigest()


def _header(outline: Mapping[str, torch.Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, planned in outline.items():
        end, kind = start + planned.nbytes, _TYPE_NAMES[planned.dtype]
        entries[name] = {"dtype": kind, "shape": list(planned.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text
