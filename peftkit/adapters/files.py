"""An adapter's files: its settings, its tensors as they are stored, and its tokenizer."""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from peftkit.adapters.record import Record
from peftkit.errors import BaseError, TargetError
from peftkit.runs.folder import ADAPTER_FOLDER
from peftkit.storage import read_json, sha256_of_json

__all__ = [
    "CONFIG_NAME", "TOKENIZER_FILES", "WEIGHTS_NAME", "Adapter", "Floats", "StoredTensor", "copy_tokenizer",
    "has_tokenizer", "read_adapter",
]  # fmt: skip

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
Floats = npt.NDArray[np.float32]

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
    """A LoRA adapter, and how it was made where that is recorded."""

    folder: Path
    config: dict[str, Any]
    """PEFT's `LoraConfig`, as it is in the file."""

    tensors: dict[str, StoredTensor]
    record: Record | None

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


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter that peftkit or PEFT wrote.

    Raises:
        TargetError: it is not a LoRA adapter in safetensors, or is damaged.
    """
    config = _read_config(folder)
    if not (folder / WEIGHTS_NAME).is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for path in folder.glob(pattern))
        if pickles:
            raise TargetError(
                f"holds its weights as a pickle, {pickles[0]}, which can run code when it is opened.",
                where=str(folder),
                remedy=f"Load it where you trust it, and save it as {WEIGHTS_NAME} with PEFT's save_pretrained.",
            )
        raise TargetError(f"has no {WEIGHTS_NAME}.", where=str(folder), remedy="Copy the adapter again.")
    return Adapter(folder, config, _read_tensors(folder / WEIGHTS_NAME), Record.read(folder))


def _read_config(folder: Path) -> dict[str, Any]:
    place = folder / CONFIG_NAME
    if not place.is_file():
        raise TargetError("is not an adapter.", where=str(folder), remedy=f"Name a folder with {CONFIG_NAME}.")
    try:
        config = read_json(place)
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TargetError("is damaged.", where=str(place), remedy="Copy the adapter again.") from error
    if kind != "LORA":
        raise TargetError(f"is of the kind {kind}.", where=str(folder), remedy="peftkit works with LoRA adapters.")
    _check_settings(place, config)
    return dict(config)


def _check_settings(place: Path, config: dict[str, Any]) -> None:
    """See that the settings that an update's size follows from are of their kinds."""
    strange = [name for name in ("r", "lora_alpha") if not isinstance(config.get(name), int | float)]
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        numbers = isinstance(pattern, dict) and all(isinstance(number, int | float) for number in pattern.values())
        if not (numbers and all(_is_expression(key) for key in pattern)):
            strange.append(name)
    if strange:
        raise TargetError(f"its {strange[0]} is damaged.", where=str(place), remedy="Copy the adapter again.")


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


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
        raise TargetError(
            f"{strange} holds {tensors[strange].dtype}, which is no number type of an adapter.",
            where=str(place),
            remedy="Save the adapter in float32, float16 or bfloat16.",
        )
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
