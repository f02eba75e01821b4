"""Nested values with tensors in them as safetensors files: what a checkpoint keeps, without a pickle.

The tensors are the file's; the structure around them is JSON in its metadata. A file that was tampered with can hold
wrong numbers, but cannot run anything. `torch.save` would write a pickle, of which `torch.load(weights_only=True)` does
not open numpy's random state.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

__all__ = ["read_values", "write_values"]

_TENSOR, _ARRAY, _TUPLE, _PAIRS, _FLOAT = "tensor", "array", "tuple", "pairs", "float"
_STRUCTURE = "structure"


def write_values(path: Path, value: Any) -> None:
    """Write dictionaries, lists, tuples, tensors, arrays, strings and numbers to a file.

    A tensor that occurs several times, as the maps of 8-bit optimizers do, is in the file once.

    Raises:
        TypeError: there is something else in them.
    """
    named: dict[int, tuple[str, torch.Tensor]] = {}
    structure = _packed(value, lambda tensor: named.setdefault(id(tensor), (str(len(named)), tensor))[0])
    stored: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, given in named.values():
        tensor = given.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        is_own = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
        stored[name] = tensor if is_own else tensor.clone()  # the library writes no tensors that share a storage
        storages.add(storage.data_ptr())
    save_file(stored, path, metadata={_STRUCTURE: json.dumps(structure, allow_nan=False)})


def read_values(path: Path) -> Any:
    """The value in a file, its tensors on the CPU.

    Raises:
        SafetensorError, ValueError, KeyError: the file is damaged, or is not one of these.
    """
    with safe_open(path, framework="pt") as file:
        structure = json.loads((file.metadata() or {})[_STRUCTURE])
        return _unpacked(structure, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  no mapping


def _packed(value: Any, name_of: Callable[[torch.Tensor], str]) -> Any:
    """A value as JSON, in which tensors stand by their names in the file."""
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return {_TENSOR: name_of(value)}
    if isinstance(value, np.ndarray):
        return {_ARRAY: name_of(torch.from_numpy(value.copy()))}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.bool_ | np.integer | np.floating) and not isinstance(value, np.longdouble):
        return _packed(value.item(), name_of)
    if isinstance(value, float):
        return {_FLOAT: value.hex()}  # exact, infinities and NaN included
    if isinstance(value, list):
        return [_packed(item, name_of) for item in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_packed(item, name_of) for item in value]}
    if isinstance(value, dict):
        return {_PAIRS: [[_packed(key, name_of), _packed(item, name_of)] for key, item in value.items()]}
    raise TypeError(f"a {type(value).__name__} cannot be kept in a checkpoint")


def _unpacked(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, item),) = value.items()
    if kind == _TENSOR:
        return tensors[item]
    if kind == _ARRAY:
        return tensors[item].numpy()
    if kind == _FLOAT:
        return float.fromhex(item)
    if kind == _TUPLE:
        return tuple(_unpacked(each, tensors) for each in item)
    return {_unpacked(key, tensors): _unpacked(each, tensors) for key, each in item}
