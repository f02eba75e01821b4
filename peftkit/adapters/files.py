"""An adapter's files: its settings, its tensors as they are stored, and its tokenizer."""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from peftkit.adapters.record import Record
from peftkit.errors import BaseError, TargetError
from peftkit.models.methods import PREFIX, Floats, TrainingMethod, Update, kinds_of_adapters, method_of_type
from peftkit.runs.folder import ADAPTER_FOLDER
from peftkit.storage import read_json, sha256_of_json

__all__ = [
    "CONFIG_NAME", "TOKENIZER_FILES", "WEIGHTS_NAME", "Adapter", "Floats", "Meaning", "StoredTensor",
    "copy_tokenizer", "has_tokenizer", "kinds_of", "meaning_of", "part_of", "place_of", "read_adapter",
]  # fmt: skip

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_NUMPY_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}

TOKENIZER_FILES = (
    "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model",
)  # fmt: skip
"""What a tokenizer is saved as."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file holds it."""

    dtype: str
    """Safetensors' name of the number type, as `F32`."""

    shape: tuple[int, ...]
    data: bytes

    @property
    def sha256(self) -> str:
        """Hex SHA-256 over number type, shape and content."""
        head = f"{self.dtype} {list(self.shape)} ".encode()
        return hashlib.sha256(head + self.data).hexdigest()

    def array(self) -> Floats:
        """The numbers, as float32."""
        numbers = np.frombuffer(self.data, _NUMPY_TYPES[self.dtype]).reshape(self.shape)
        if self.dtype == "BF16":  # the upper half of a float32
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers.astype(np.float32)


@dataclass(frozen=True)
class Adapter:
    """An adapter, and how it was made where that is recorded."""

    folder: Path
    config: dict[str, Any]
    """PEFT's configuration, as it is in the file."""

    tensors: dict[str, StoredTensor]
    record: Record | None

    @property
    def method(self) -> TrainingMethod:
        """The method that leaves such adapters."""
        method = method_of_type(self.config["peft_type"])
        assert method is not None  # reading it has checked that
        return method

    @property
    def name(self) -> str:
        """What people call it: the name of its folder, or of the run that it is in."""
        folder = self.folder.resolve()
        return folder.parent.name if folder.name == ADAPTER_FOLDER else folder.name

    @property
    def sha256(self) -> str:
        """Hex SHA-256 over all tensors, by name."""
        return sha256_of_json({name: tensor.sha256 for name, tensor in self.tensors.items()})

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        """Size of the weights."""
        return sum(len(tensor.data) for tensor in self.tensors.values())


@dataclass(frozen=True)
class Meaning:
    """Everything that an adapter changes, by the base's own names."""

    updates: dict[str, Update]
    """By module."""

    whole: dict[str, Floats]
    """Parameters that were trained whole and take the place of the base's, by name: `modules_to_save`, biases, and
    embeddings that grew with the vocabulary."""


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter that peftkit or PEFT wrote.

    Raises:
        TargetError: it is no adapter of a method of peftkit's, is not in safetensors, or is damaged.
    """
    config = _read_config(folder)
    if not (folder / WEIGHTS_NAME).is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for path in folder.glob(pattern))
        if pickles:
            what = f"holds its weights as a pickle, {pickles[0]}, which can run code when it is opened."
            remedy = f"Load it where you trust it, and save it as {WEIGHTS_NAME} with PEFT's save_pretrained."
            raise TargetError(what, where=str(folder), remedy=remedy)
        raise TargetError(f"has no {WEIGHTS_NAME}.", where=str(folder), remedy="Copy the adapter again.")
    return Adapter(folder, config, _read_tensors(folder / WEIGHTS_NAME), Record.read(folder))


def meaning_of(adapter: Adapter) -> Meaning:
    """Sort an adapter's tensors by what they do.

    Raises:
        TargetError: a tensor is not known, or misses one that belongs to it.
    """
    method = adapter.method
    parts: dict[str, dict[str, Floats]] = {}
    whole: dict[str, Floats] = {}
    for name, tensor in adapter.tensors.items():
        module, part = part_of(name, method)
        if part is None:
            whole[module] = tensor.array()
        else:
            parts.setdefault(module, {})[part] = tensor.array()
    return Meaning(method.updates(adapter.folder, adapter.config, parts), whole)


def part_of(name: str, method: TrainingMethod) -> tuple[str, str | None]:
    """Of a tensor in the file: its module and part there, or a whole parameter's name and None."""
    inner = name.removeprefix(PREFIX)
    for part in method.parts:
        if inner.endswith(f".{part}"):
            return inner.removesuffix(f".{part}"), part
    return inner.replace(".base_layer.", "."), None


def place_of(module: str) -> tuple[int | None, str]:
    """The number of the layer that a module is in, and its name there."""
    parts = re.fullmatch(r".*?\.(\d+)\.(.+)", module)
    return (int(parts[1]), parts[2]) if parts else (None, module)


def kinds_of(modules: Iterable[str]) -> list[str]:
    """The names that modules have inside their layers, each once."""
    return list(dict.fromkeys(place_of(module)[1] for module in modules))


def _read_config(folder: Path) -> dict[str, Any]:
    place = folder / CONFIG_NAME
    if not place.is_file():
        raise TargetError("is not an adapter.", where=str(folder), remedy=f"Name a folder with {CONFIG_NAME}.")
    try:
        config = read_json(place)
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TargetError("is damaged.", where=str(place), remedy="Copy the adapter again.") from error
    method = method_of_type(kind)
    if method is None:
        remedy = f"peftkit works with {' and '.join(kinds_of_adapters())} adapters."
        raise TargetError(f"is of the kind {kind}.", where=str(folder), remedy=remedy)
    damaged = method.damaged(config)
    if damaged:
        raise TargetError(f"its {damaged[0]} is damaged.", where=str(place), remedy="Copy the adapter again.")
    return dict(config)


def _read_tensors(place: Path) -> dict[str, StoredTensor]:
    try:
        stored = safetensors.deserialize(place.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, safetensors.SafetensorError) as error:
        raise TargetError("is damaged or incomplete.", where=str(place), remedy="Copy the adapter again.") from error
    tensors = {
        name: StoredTensor(values["dtype"], tuple(values["shape"]), bytes(values["data"])) for name, values in stored
    }
    strange = next((name for name, tensor in tensors.items() if tensor.dtype not in _NUMPY_TYPES), None)
    if strange:
        what = f"{strange} holds {tensors[strange].dtype}, which is no number type of an adapter."
        raise TargetError(what, where=str(place), remedy="Save the adapter in float32, float16 or bfloat16.")
    return dict(sorted(tensors.items()))


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer was saved in a folder."""
    return (folder / "tokenizer_config.json").is_file()


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer's files as they are: opening and saving it would take longer, and write them in another form.

    Raises:
        BaseError: there are none.
    """
    files = [file for pattern in TOKENIZER_FILES for file in sorted(source.glob(pattern)) if file.is_file()]
    if not files:
        raise BaseError("holds no tokenizer.", where=str(source), remedy="Save the base's tokenizer into it.")
    for file in files:
        shutil.copyfile(file, folder / file.name)
