"""A base's tensors, read from its files one at a time under the names of the model that they make."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftkit.errors import BaseError
from peftkit.models.published import WEIGHTS_NAME
from peftkit.storage import read_json

__all__ = ["BaseWeights", "StoredWeight", "is_transposed", "weight_files"]

_INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class StoredWeight:
    """Where a tensor is."""

    file: Path
    name: str
    """In the file."""

    shape: tuple[int, ...]
    is_float: bool
    parameter: str | None
    """In the model; None for a tensor that Transformers makes something else of when it loads the file."""


class BaseWeights:
    """The checkpoint of a base. No tensor of it stays in memory."""

    def __init__(self, folder: Path, structure: Any) -> None:
        """Look at the files in `folder` that hold the weights of `structure`, the empty model.

        Raises:
            BaseError: they are damaged, or the index names a file elsewhere.
        """
        parameters = set(structure.state_dict())
        prefix = f"{structure.base_model_prefix}."
        ignored = [re.compile(pattern) for pattern in structure._keys_to_ignore_on_load_unexpected or ()]
        self.stored: list[StoredWeight] = []
        """In the order of the files, so that reading them runs forward."""

        for file in weight_files(folder):
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.offset_keys():
                        spellings = (name, prefix + name, name.removeprefix(prefix))
                        parameter = next((spelling for spelling in spellings if spelling in parameters), None)
                        if parameter is None and any(pattern.search(name) for pattern in ignored):
                            continue  # masks that early checkpoints hold and no model reads
                        stored = opened.get_slice(name)
                        is_float = stored.get_dtype() in _FLOATS
                        self.stored.append(StoredWeight(file, name, tuple(stored.get_shape()), is_float, parameter))
            except (OSError, SafetensorError) as error:
                raise _damaged(file) from error
        self._by_parameter = {weight.parameter: weight for weight in self.stored if weight.parameter}

    def find(self, parameter: str) -> StoredWeight | None:
        """The tensor of a parameter, if the files hold it as such."""
        return self._by_parameter.get(parameter)

    def read(self, weight: StoredWeight) -> torch.Tensor:
        """A tensor as the file holds it; the file is mapped into memory as long as the tensor is used.

        Raises:
            BaseError: the file has gone, or has changed.
        """
        try:
            with safe_open(weight.file, framework="pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(weight.name)
        except (OSError, SafetensorError) as error:
            raise _damaged(weight.file) from error
        return tensor


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a base's weights: one, or those that its index names.

    Raises:
        BaseError: there are none, or the index is damaged or names a file elsewhere.
    """
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    try:
        names = sorted(set(read_json(folder / _INDEX)["weight_map"].values()))
        strange = next((name for name in names if Path(name).name != name), None)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(folder / _INDEX) from error
    if strange is not None:
        what = f"names a file in another folder, {strange}."
        raise BaseError(what, where=str(folder / _INDEX), remedy="Use a checkpoint whose files are all in one folder.")
    return [folder / name for name in names]


def _damaged(file: Path) -> BaseError:
    return BaseError("is missing or damaged.", where=str(file), remedy="Copy or fetch the base again.")


def is_transposed(module: Any) -> bool:
    """Whether a module holds its weight as [in, out], as GPT-2's Conv1D and embeddings do, not as [out, in]."""
    return isinstance(module, Conv1D | nn.Embedding)
