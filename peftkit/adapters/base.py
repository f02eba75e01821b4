"""An adapter on the base that it belongs on, and on nothing else."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.pytorch_utils import Conv1D

from peftkit import console
from peftkit.adapters.files import CONFIG_NAME, WEIGHTS_NAME, Adapter, meaning_of
from peftkit.adapters.soundness import check_sound, unchecked
from peftkit.errors import FieldError, TargetError, UnfetchedError, first_line
from peftkit.models.attach import embedding_modules, tied_modules
from peftkit.models.base import LocatedBase, locate_base
from peftkit.models.dtypes import hold_in_float32
from peftkit.models.quantization import load_base
from peftkit.recipe.hyperparameters import Quantization
from peftkit.recipe.schema import Base
from peftkit.runs.folder import RunFolder
from peftkit.shortage import memory_for

__all__ = ["AS_RECORDED", "Footing", "GivenBase", "check_fit", "find_footing", "model_footing", "put_adapter"]


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
class Footing:
    """What an adapter stands on: a base, and how it is held."""

    base: LocatedBase
    config: Any
    quantization: Quantization | None
    dtype: str
    """Torch's name of the number type that it is held, or computed, in."""

    def structure(self) -> Any:
        """The base without weights, on the meta device."""
        return self.base.structure(self.config)

    def load(self, device: str) -> Any:
        """The base with its weights, on its device.

        Raises:
            BaseError: it cannot be opened.
        """
        return load_base(self.base, self.config, self.quantization, self.dtype, device)


def find_footing(adapter: Adapter, given: GivenBase = AS_RECORDED) -> Footing:
    """The base of an adapter that has been seen to be sound, and to be this base's.

    The base that an adapter without a record names is opened only when the command line says so too.

    Raises:
        TargetError: the adapter was changed, or the base is not there or not the one that it was trained on.
    """
    check_sound(adapter)
    record = adapter.record
    if record is None:
        if given.model is None:
            named = adapter.config.get("base_model_name_or_path")
            what = f"was not made by peftkit, and names {named!r} as its base, which is not opened unasked."
            raise TargetError(what, where=str(adapter.folder), remedy="Name its base with --base.")
        console.warning(unchecked(adapter) or "")
        base = _locate(adapter, Base(model=given.model))
        return Footing(base, base.config(), given.quantization, "float32")
    if given.quantization is not None:
        raise TargetError(
            "records how its base was quantised.", where=str(adapter.folder), remedy="Leave out --quantization."
        )
    own = record.recipe.base
    as_trained = own.model_copy(update={"revision": record.base["revision"]})  # a branch may have moved on since
    base = _locate(adapter, as_trained if given.model is None else Base(model=given.model))
    if base.fingerprint != record.base["sha256"]:
        what = f"was trained on another {record.base['model']} than {base.folder}."
        remedy = "Weights or configuration differ; bring back that base, or name its place with --base."
        raise TargetError(what, where=str(adapter.folder), remedy=remedy)
    return Footing(base, base.config(own.dropout), record.recipe.base_quantization, record.base_dtype)


def model_footing(model: Base) -> Footing:
    """A whole model as it is, taken as a base of its own.

    Raises:
        TargetError: there is none.
    """
    try:
        base = locate_base(model)
    except FieldError as error:
        raise TargetError(error.what, where=str(model.model), remedy=error.remedy) from error
    return Footing(base, base.config(), None, "float32")


def check_fit(adapter: Adapter, footing: Footing) -> None:
    """See that an adapter has just the tensors that its configuration calls for on this base, in their shapes.

    Raises:
        TargetError: it has not, or changes a matrix that input and head share.
    """
    place = str(adapter.folder / WEIGHTS_NAME)
    structure = footing.structure()
    tied = tied_modules(structure)
    shared = next((module for module in meaning_of(adapter).updates if module in tied), None)
    if shared:
        what = f"adapts {shared}, which is tied: input embedding and head are one matrix, and would no longer be."
        remedy = "Train it again without; peftkit's own recipes refuse such a target."
        raise TargetError(what, where=str(adapter.folder), remedy=remedy)
    _check_layers(adapter, structure, place)
    # these may be saved beside the adapter, and are longer where the vocabulary has grown
    tables = {name for module in embedding_modules(structure) for name in _table_names(module)}
    wanted = _wanted_shapes(adapter, structure)
    found = adapter.tensors
    missing = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted) - tables)
    misshapen = [name for name in {*wanted} & {*found} - tables if wanted[name] != found[name].shape]
    for names, what in ((missing, "is missing"), (extra, "is one too many"), (misshapen, "has another shape")):
        if names:
            others = f", and {len(names) - 1} more" if len(names) > 1 else ""
            what = f"does not hold what {CONFIG_NAME} calls for on this base: {names[0]} {what}{others}."
            raise TargetError(what, where=place, remedy="It is incomplete, was edited, or belongs to another base.")


def put_adapter(model: Any, adapter: Adapter) -> Any:
    """Put an adapter that fits on a model of its base.

    Raises:
        TargetError: PEFT cannot.
        MemoryRunError: it does not fit into memory.
    """
    from peft import PeftModel

    words = _saved_words(adapter, model)
    with memory_for("the adapter", where=str(adapter.folder), remedy="Free memory that others use."):
        if words not in (None, model.get_input_embeddings().num_embeddings):
            model.resize_token_embeddings(words, mean_resizing=False)
        hold_in_float32(model, meaning_of(adapter).whole)  # as training held them
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a tensor that is missing has been an error before
                return PeftModel.from_pretrained(model, str(adapter.folder), config=_library_config(adapter, model))
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise _unfit(adapter, error) from error


def _locate(adapter: Adapter, base: Base) -> LocatedBase:
    where, remedy = str(adapter.folder), "Bring it back, or name its place with --base."
    place = Path(base.model or "").expanduser()
    if str(base.model).startswith(("/", ".", "~")) and not place.is_dir():
        raise TargetError(f"its base is not there: there is no folder {place}.", where=where, remedy=remedy)
    try:
        return locate_base(base)
    except UnfetchedError as error:
        recipe = RunFolder(adapter.folder.parent).recipe
        own = recipe.is_file() and base.revision
        fetching = error.remedy_for(str(recipe), f" --set base.revision={base.revision}") if own else error.remedy
        raise TargetError(f"its base cannot be opened: {error.what}", where=where, remedy=fetching) from error
    except FieldError as error:
        raise TargetError(f"its base cannot be opened: {error.what}", where=where, remedy=remedy) from error


def _check_layers(adapter: Adapter, structure: Any, place: str) -> None:
    """An adapter of a deeper model has tensors for layers that are not there."""
    in_base = {int(number) for name, _ in structure.named_modules() for number in re.findall(r"\.(\d+)$", name)}
    in_file = {int(number) for name in adapter.tensors for number in re.findall(r"\.(\d+)\.", name)}
    if in_file and in_base and max(in_file) > max(in_base):
        what = f"holds tensors for layer {max(in_file)}, but the base's last is {max(in_base)}."
        raise TargetError(what, where=place, remedy="It belongs to a base with more layers.")


def _wanted_shapes(adapter: Adapter, structure: Any) -> dict[str, tuple[int, ...]]:
    """The tensors that PEFT would save for the adapter's configuration on this structure."""
    from peft import get_peft_model, get_peft_model_state_dict

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = get_peft_model(structure, _library_config(adapter, structure), low_cpu_mem_usage=True)
            tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except (ValueError, TypeError, RuntimeError) as error:
        raise _unfit(adapter, error) from error
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _saved_words(adapter: Adapter, model: Any) -> int | None:
    """Size of the vocabulary that an adapter was saved with, where it brings the input embedding along."""
    table = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is table)
    saved = next((adapter.tensors[each] for each in _table_names(name) if each in adapter.tensors), None)
    return saved.shape[0] if saved else None


def _table_names(module: str) -> tuple[str, str]:
    """What PEFT calls an embedding's weight that it saves beside an adapter, without and with an adapter on it."""
    return f"base_model.model.{module}.weight", f"base_model.model.{module}.base_layer.weight"


def _library_config(adapter: Adapter, model: Any) -> Any:
    """PEFT's configuration, with the orientation of this model's layers: a quantised base's are never transposed."""
    from peft import PeftConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    try:
        config = PeftConfig.from_pretrained(str(adapter.folder))
    except (OSError, ValueError, TypeError) as error:
        raise TargetError("cannot be read.", where=str(adapter.folder / CONFIG_NAME)) from error
    targets = (module for name, module in model.named_modules() if check_target_module_exists(config, name))
    config.fan_in_fan_out = isinstance(next(targets, None), Conv1D)
    return config


def _unfit(adapter: Adapter, error: Exception) -> TargetError:
    what = f"cannot be put on its base: {first_line(error)}"
    remedy = "The file is damaged or belongs to another base; train or copy it again."
    return TargetError(what, where=str(adapter.folder), remedy=remedy)
