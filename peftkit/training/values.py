"""Nested values with tensors in them as safetensors files: what a checkpoint keeps, without a pickle.

The tensors are the file's; the structure around them is JSON in its metadata. A file that was tampered with can hold
wrong numbers, but cannot run anything. `torch.save` would write a pickle, of which `torch.load(weights_only=True)` does
not open numpy's random state.
"""

from __future__ import annotations

import json
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
    """Write dictionaries, lists, tuples, tensors, arrays, texts and numbers to a file.

    Raises:
        TypeError: there is something else in them.
    """
    tensors = _Tensors()
    structure = _packed(value, tensors)
    save_file(tensors.stored(), path, metadata={_STRUCTURE: json.dumps(structure, allow_nan=False)})


def read_values(path: Path) -> Any:
    """What was written to a file, its tensors on the CPU.

    Raises:
        SafetensorError, ValueError, KeyError: it is no such file.
    """
    with safe_open(path, framework="pt") as file:
        structure = json.loads((file.metadata() or {})[_STRUCTURE])
        return _unpacked(structure, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  no mapping


class _Tensors:
    """The tensors of a file by their names in it."""

    def __init__(self) -> None:
        self._named: dict[int, tuple[str, torch.Tensor]] = {}

    def add(self, tensor: torch.Tensor) -> str:
        """The name of a tensor; one that comes several times, as 8-bit optimizers' maps do, is in the file once."""
        return self._named.setdefault(id(tensor), (str(len(self._named)), tensor))[0]

    def stored(self) -> dict[str, torch.Tensor]:
        """Each as a file holds it: on the CPU, in one piece, and with a storage of its own."""
        stored: dict[str, torch.Tensor] = {}
        storages: set[int] = set()
        for name, given in self._named.values():
            tensor = given.detach().cpu().contiguous()
            storage = tensor.untyped_storage()
            own = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
            stored[name] = tensor if own else tensor.clone()
            storages.add(storage.data_ptr())
        return stored


def _packed(value: Any, tensors: _Tensors) -> Any:
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return {_TENSOR: tensors.add(value)}
    if isinstance(value, np.ndarray):
        return {_ARRAY: tensors.add(torch.from_numpy(value.copy()))}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.bool_ | np.integer | np.floating) and not isinstance(value, np.longdouble):
        return _packed(value.item(), tensors)
    if isinstance(value, float):
        return {_FLOAT: value.hex()}  # exact, and of the infinite too
    if isinstance(value, list):
        return [_packed(item, tensors) for item in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_packed(item, tensors) for item in value]}
    if isinstance(value, dict):
        return {_PAIRS: [[_packed(key, tensors), _packed(item, tensors)] for key, item in value.items()]}
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
