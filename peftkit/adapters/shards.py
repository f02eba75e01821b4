"""Safetensors files written one tensor at a time: the library's own writer wants all of a file in memory.

The format is a length, a JSON header of names, types, shapes and offsets, and then the numbers
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from peftkit.storage import write_json

__all__ = ["TensorSpec", "plan_shards", "write_shards"]

_TYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor will be."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def plan_shards(specs: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    """Split tensors, in their order, into files of at most `shard_bytes`; a larger tensor has a file of its own."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.bytes
    return shards


def write_shards(
    folder: Path, shards: Sequence[Sequence[TensorSpec]], make: Callable[[str], torch.Tensor]
) -> dict[str, str]:
    """Write a checkpoint as Transformers names its files, asking for each tensor when its turn comes.

    Gives the SHA-256 of each file of weights, which is computed on the way.

    Until its last tensor is written a file is shorter than its header says, so that no library opens it; the index of
    several files is written after them.
    """
    total = len(shards)
    names = [f"model-{number:05}-of-{total:05}.safetensors" for number in range(1, total + 1)]
    if total == 1:
        names = ["model.safetensors"]
    hashes = {name: _write(folder / name, specs, make) for name, specs in zip(names, shards, strict=True)}
    if total > 1:
        size = sum(spec.bytes for specs in shards for spec in specs)
        weight_map = {spec.name: name for name, specs in zip(names, shards, strict=True) for spec in specs}
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)
    return hashes


def _write(place: Path, specs: Sequence[TensorSpec], make: Callable[[str], torch.Tensor]) -> str:
    header = _header(specs)
    digest = hashlib.sha256(header)
    with place.open("wb") as file, ThreadPoolExecutor(max_workers=1) as beside:
        hashed = beside.submit(digest.update, b"")
        file.write(header)
        for spec in specs:
            tensor = make(spec.name)
            if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
                raise AssertionError(f"{spec.name} was to be {spec}, and is {tensor.dtype} {list(tensor.shape)}")
            content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            hashed.result()  # of the tensor before, so that no more than two are in memory
            hashed = beside.submit(digest.update, content)
            file.write(content)
    return digest.hexdigest()


def _header(specs: Sequence[TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for spec in specs:
        end = start + spec.bytes
        entries[spec.name] = {"dtype": _TYPE_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text
