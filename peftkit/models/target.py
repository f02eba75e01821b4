"""What a command's TARGET is (a run folder, an adapter, a merged model, a base), and the model in it, ready to use."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftkit.errors import FieldError, TargetError
from peftkit.models.base import LocatedBase, locate_base, open_tokenizer
from peftkit.models.quantise import load_base
from peftkit.recipe.schema import Base, Recipe
from peftkit.storage import read_json

__all__ = [
    "RECORD_NAME",
    "AdapterRecord",
    "Opened",
    "Target",
    "find_target",
    "open_adapter",
    "open_target",
    "put_adapter",
]

RECORD_NAME = "peftkit.json"
"""What peftkit writes beside an adapter's or a model's own files: how it was made."""


@dataclass(frozen=True)
class Target:
    """A place that a model can be opened from, and the recipe that made it, where one is recorded."""

    kind: Literal["adapter", "model"]
    folder: str
    recipe: Recipe | None


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode on its device, with its tokenizer."""

    model: Any
    tokenizer: Any
    target: Target


@dataclass(frozen=True)
class AdapterRecord:
    """How an adapter was made, as far as opening it again needs to know."""

    recipe: Recipe
    base_sha256: str
    base_dtype: str

    @classmethod
    def read(cls, folder: Path) -> AdapterRecord:
        """Read the record in an adapter's folder.

        Raises:
            TargetError: there is none, or it is damaged.
        """
        place = folder / RECORD_NAME
        try:
            values = read_json(place)
            return cls(Recipe.model_validate(values["recipe"]), values["base"]["sha256"], values["base_dtype"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TargetError(
                "is missing or damaged.",
                where=str(place),
                remedy="It says which base the adapter belongs on; use a folder that peftkit wrote.",
            ) from error


def find_target(name: str) -> Target:
    """Tell what a name on the command line stands for by what is in the folder.

    Raises:
        TargetError: the folder holds nothing that can be opened.
    """
    folder = Path(name).expanduser()
    if not folder.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise TargetError("there is no such folder.", where=name)
        return Target("model", name, None)
    for inner in (folder, folder / "adapter", folder / "model"):
        if (inner / "adapter_config.json").is_file():
            return _recorded("adapter", inner)
        if (inner / "config.json").is_file():
            return _recorded("model", inner)
    raise TargetError(
        "holds neither a run, an adapter nor a model.",
        where=name,
        remedy="An unfinished run has none; otherwise name the folder that holds config.json or adapter_config.json.",
    )


def find_adapter(folder: Path) -> Path:
    """The adapter's own folder, given that or the run that made it.

    Raises:
        TargetError: there is no adapter.
    """
    target = find_target(str(folder))
    if target.kind != "adapter" or not folder.exists():
        raise TargetError("is not an adapter.", where=str(folder), remedy="Name the run or folder of an adapter.")
    return Path(target.folder)


def _recorded(kind: Literal["adapter", "model"], folder: Path) -> Target:
    place = folder / RECORD_NAME
    if not place.is_file():
        return Target(kind, str(folder), None)
    try:
        return Target(kind, str(folder), Recipe.model_validate(read_json(place)["recipe"]))
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError("is damaged.", where=str(place), remedy="Export the run again.") from error


def open_target(target: Target, device: str) -> Opened:
    """Open a target on `device`, as it was trained: an adapter on the very base, quantised or not, that it belongs on.

    Raises:
        TargetError: it is damaged, or its base is not the one it was trained on.
    """
    if target.kind == "adapter":
        model, tokenizer, _ = open_adapter(Path(target.folder), device)
        return Opened(model.eval(), tokenizer, target)
    try:
        base = locate_base(Base(model=target.folder))
    except FieldError as error:
        raise TargetError(error.what, where=target.folder, remedy=error.remedy) from error
    model = base.load(base.config(), "float32").to(device)
    return Opened(model.eval(), base.tokenizer(), target)


def open_adapter(folder: Path, device: str) -> tuple[Any, Any, LocatedBase]:
    """An adapter on a freshly loaded base of its own, the tokenizer, and that base.

    Raises:
        TargetError: tensors are missing or damaged, or the base has changed since.
    """
    from peft import PeftConfig

    record = AdapterRecord.read(folder)
    base = locate_base(record.recipe.base)
    if base.fingerprint != record.base_sha256:
        raise TargetError(
            f"was trained on another {base.reference} than the one here.",
            where=str(folder),
            remedy="Its weights or configuration have changed; bring back the base that the adapter was trained on.",
        )
    config = base.config(record.recipe.base.dropout)
    model = load_base(base, config, record.recipe, record.base_dtype, device)
    try:
        adapter_config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise TargetError("has no readable adapter_config.json.", where=str(folder)) from error
    return put_adapter(model, folder, adapter_config), _tokenizer(folder, base), base


def put_adapter(model: Any, folder: Path, adapter_config: Any) -> Any:
    """Put a saved adapter on a model, and see that every tensor of it found its place."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.tuners.tuners_utils import check_target_module_exists
    from safetensors import SafetensorError, safe_open
    from transformers.pytorch_utils import Conv1D

    first = next(module for name, module in model.named_modules() if check_target_module_exists(adapter_config, name))
    adapter_config.fan_in_fan_out = isinstance(first, Conv1D)
    try:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            saved = set(file.keys())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a tensor that is missing is an error below
            adapted = PeftModel.from_pretrained(model, str(folder), config=adapter_config)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TargetError(
            f"cannot be put on its base: {str(error).splitlines()[0]}",
            where=str(folder),
            remedy="The file is damaged or belongs to another base; train or copy it again.",
        ) from error
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    broken = next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)
    if broken:
        raise TargetError(
            f"holds values in {broken} that are not finite.",
            where=str(folder / "adapter_model.safetensors"),
            remedy="Its training went wrong; train it again with a lower learning rate.",
        )
    if set(tensors) != saved:
        raise TargetError(
            "does not hold the tensors that its configuration calls for.",
            where=str(folder / "adapter_model.safetensors"),
            remedy="It is incomplete or was edited; train or copy it again.",
        )
    return adapted


def _tokenizer(folder: Path, base: LocatedBase) -> Any:
    return open_tokenizer(folder) if (folder / "tokenizer_config.json").is_file() else base.tokenizer()
