"""Safetensors files written one tensor at a time: the library's own writer wants all of a file in memory.

The format is a length, a JSON header of names, types, shapes and offsets, and then the numbers
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards

from peftkit.storage import write_json

__all__ = ["write_shards"]

_TYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


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
