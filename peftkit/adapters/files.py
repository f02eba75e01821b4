"""An adapter's files: settings, tensors, tokenizer, the record of how it was made, and whether they are as saved."""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from peftkit.errors import BaseError, TargetError
from peftkit.models.methods import (
    PREFIX,
    ROWS_PART,
    Floats,
    TrainedRows,
    TrainingMethod,
    Update,
    kinds_of_adapters,
    method_of_type,
    trained_rows,
)
from peftkit.recipe.hyperparameters import Quantization
from peftkit.recipe.schema import Recipe
from peftkit.runs.folder import ADAPTER_FOLDER
from peftkit.storage import read_json, sha256_of_json

__all__ = [
    "AS_RECORDED", "CONFIG_NAME", "GENERATION_NAME", "RECEIPT_NAME", "RECORD_NAME", "TOKENIZER_FILES", "WEIGHTS_NAME",
    "Adapter", "Floats", "GivenBase", "Record", "StoredTensor", "copy_tokenizer", "has_tokenizer",
]  # fmt: skip

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
RECORD_NAME = "peftkit.json"
"""How an adapter or a model was made, and what it must still be when it is opened."""

RECEIPT_NAME = "merge.json"
"""What a merged model was made of and how it was proven, beside its record."""


_NUMPY_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}

_COPIES = re.compile(r"\.(original_module|modules_to_save)\.")
"""What PEFT saves once more of an embedding that was trained whole, where the vocabulary was resized."""

GENERATION_NAME = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model",
    GENERATION_NAME,
)  # fmt: skip
"""What a tokenizer is saved as, and the tokens at which generation stops."""


@dataclass(frozen=True)
class Record:
    """The fingerprint of what a run ships. Everything of it but the metrics is checked when it is opened again."""

    recipe: Recipe
    base: dict[str, Any]
    """Name, revision, and SHA-256 of the configuration and of each weight file, with one over all of them."""

    base_dtype: str
    """Torch's name of the dtype that the base was held in while training."""

    data: dict[str, Any]
    """Where the data came from, the hashes of its files, and its counts."""

    metrics: dict[str, Any]
    versions: dict[str, str | None]
    adapter_config: dict[str, Any] | None = None
    """PEFT's configuration as it was saved; None for a whole model."""

    tensors: dict[str, str] | None = None
    """SHA-256 of each of an adapter's tensors; None for a whole model, whose files `manifest.json` holds to account."""

    made_from: list[dict[str, Any]] | None = None
    """The adapters that this one is the weighted sum or the compression of, if it was not trained itself."""

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in a folder, or None where there is none: then peftkit did not make what is there.

        Raises:
            TargetError: it is damaged.
        """
        place = folder / RECORD_NAME
        if not place.exists():
            return None
        try:
            values = read_json(place)
            fields = {name: values[name] for name in cls.__dataclass_fields__ if name != "recipe"}
            return cls(recipe=Recipe.model_validate(values["recipe"]), **fields)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TargetError("is damaged.", where=str(place), remedy="Copy or export it again.") from error

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        recipe = self.recipe.model_dump(mode="json", exclude={"output"})
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "recipe"}
        quantization = recipe["quantization"] if self.recipe.base_quantization else None
        return {"recipe": recipe, "recipe_sha256": sha256_of_json(recipe), "quantization": quantization, **own}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file holds it."""

    dtype: str
    """Safetensors' name of the dtype, as `F32`."""

    shape: tuple[int, ...]
    data: bytes

    @property
    def sha256(self) -> str:
        """Hex SHA-256 over dtype, shape and content."""
        head = f"{self.dtype} {list(self.shape)} ".encode()
        return hashlib.sha256(head + self.data).hexdigest()

    def array(self) -> Floats:
        """The numbers, as float32."""
        numbers = np.frombuffer(self.data, _NUMPY_TYPES[self.dtype]).reshape(self.shape)
        if self.dtype == "BF16":  # the upper half of a float32
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers.astype(np.float32)


@dataclass(frozen=True)
class GivenBase:
    """What the command line says about the base of an adapter."""

    model: str | None = None
    """A folder, hub name or `builtin:…`: for an adapter without a record, and for a base that has moved."""

    quantization: Quantization | None = None
    """How the base was held; only for an adapter without a record."""


AS_RECORDED = GivenBase()
"""Nothing: the adapter's record says it all."""


@dataclass(frozen=True)
class Adapter:
    """An adapter, and how it was made where that is recorded."""

    folder: Path
    config: dict[str, Any]
    """PEFT's configuration, as it is in the file."""

    tensors: dict[str, StoredTensor]
    record: Record | None

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Read an adapter that peftkit or PEFT wrote.

        Raises:
            TargetError: it is no adapter of a method of peftkit's, is not in safetensors, or is damaged.
        """
        config = _read_config(folder)
        if not (folder / WEIGHTS_NAME).is_file():
            endings = ("*.bin", "*.pt", "*.pth", "*.pkl")
            pickles = sorted(path.name for pattern in endings for path in folder.glob(pattern))
            if pickles:
                what = f"holds its weights as a pickle, {pickles[0]}, which can run code when it is opened."
                remedy = f"Load it where you trust it, and save it as {WEIGHTS_NAME} with PEFT's save_pretrained."
                raise TargetError(what, where=str(folder), remedy=remedy)
            raise TargetError(f"has no {WEIGHTS_NAME}.", where=str(folder), remedy="Copy the adapter again.")
        return cls(folder, config, _read_tensors(folder / WEIGHTS_NAME), Record.read(folder))

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
    def base_name(self) -> str | None:
        """What its base is called, as far as it is known."""
        return self.record.base["model"] if self.record else self.config.get("base_model_name_or_path")

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

    @property
    def updates(self) -> dict[str, Update]:
        """What it does to each module, by the base's own names.

        Raises:
            TargetError: a tensor of a module is missing, or the adapter is of a kind that cannot be merged.
        """
        parts: dict[str, dict[str, Floats]] = {}
        for name, tensor in self.tensors.items():
            module, part = self.part_of(name)
            if part not in (None, ROWS_PART):
                parts.setdefault(module, {})[part] = tensor.array()
        return self.method.updates(self.folder, self.config, parts)

    @property
    def whole(self) -> dict[str, Floats]:
        """Parameters that were trained whole and take the place of the base's, by its own names.

        They are `modules_to_save`, biases, and embeddings that grew with the vocabulary.
        """
        places = {name: self.part_of(name) for name in self.tensors}
        own = {name: module for name, (module, part) in places.items() if part is None and not _COPIES.search(name)}
        return {module: self.tensors[name].array() for name, module in own.items()}

    @property
    def rows(self) -> dict[str, TrainedRows]:
        """Single rows that take the place of the base's, or follow them, by the base's name of the parameter."""
        tensors = {name: tensor.array() for name, tensor in self.tensors.items() if name.endswith(f".{ROWS_PART}")}
        return trained_rows(self.folder, self.config, tensors)

    def part_of(self, name: str) -> tuple[str, str | None]:
        """Of a tensor in the file: its module and part there, or a whole parameter's name and None."""
        inner = name.removeprefix(PREFIX)
        part = next((part for part in (*self.method.parts, ROWS_PART) if inner.endswith(f".{part}")), None)
        if part is None:
            return inner.replace(".token_adapter.", ".").replace(".base_layer.", "."), None
        return inner.removesuffix(f".{part}"), part

    @property
    def not_finite(self) -> list[str]:
        """Names of the tensors that hold a NaN or an infinity."""
        return [name for name, tensor in self.tensors.items() if not np.isfinite(tensor.array()).all()]

    @property
    def config_changes(self) -> list[str]:
        """How the configuration differs from the recorded one."""
        if self.record is None or self.record.adapter_config is None:
            return []
        sides = self.record.adapter_config, self.config
        saved, found = ({key: repr(value) for key, value in side.items()} for side in sides)
        differing = sorted(key for key in {*saved, *found} if found.get(key) != saved.get(key))
        return [f"{key} is {found.get(key, 'not there')}, was {saved.get(key, 'not there')}" for key in differing]

    @property
    def tensor_changes(self) -> list[str]:
        """How the tensors differ from the recorded ones."""
        if self.record is None or self.record.tensors is None:
            return []
        saved, found, changes = self.record.tensors, self.tensors, []
        for name in sorted({*saved, *found}):
            if name not in found:
                changes.append(f"{name} is missing")
            elif name not in saved:
                changes.append(f"{name} is one too many")
            elif found[name].sha256 != saved[name]:
                changes.append(f"{name} has other values or another shape")
        return changes

    def check_sound(self) -> None:
        """See that it has no NaN and is, where that is recorded, what was saved.

        Raises:
            TargetError: it has, or is not; the message names what differs.
        """
        if broken := self.not_finite:
            what = f"holds values in {_some(broken)} that are not finite."
            remedy = "Its training went wrong; train it again with a lower learning rate."
            raise TargetError(what, where=str(self.folder / WEIGHTS_NAME), remedy=remedy)
        for name, changes in ((CONFIG_NAME, self.config_changes), (WEIGHTS_NAME, self.tensor_changes)):
            if changes:
                what = f"is not what was saved: {_some(changes, '; ')}."
                remedy = "It was edited or damaged; copy or train the adapter again."
                raise TargetError(what, where=str(self.folder / name), remedy=remedy)


def _some(things: list[str], separator: str = ", ") -> str:
    rest = len(things) - 3
    return separator.join(things[:3]) + (f"{separator}and {rest} more" if rest > 0 else "")


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
    tensors = {name: StoredTensor(each["dtype"], tuple(each["shape"]), bytes(each["data"])) for name, each in stored}
    strange = next((name for name, tensor in tensors.items() if tensor.dtype not in _NUMPY_TYPES), None)
    if strange:
        what = f"{strange} holds {tensors[strange].dtype}, which is no dtype of an adapter."
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
