"""What a command's TARGET is, by what is in the folder, and how it is opened: an adapter on its own base alone."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from transformers.pytorch_utils import Conv1D

from peftkit import console
from peftkit.adapters.files import (
    AS_RECORDED,
    CONFIG_NAME,
    RECORD_NAME,
    WEIGHTS_NAME,
    Adapter,
    GivenBase,
    Record,
    has_tokenizer,
)
from peftkit.errors import FieldError, TargetError, UnfetchedError, first_line
from peftkit.models.attach import embedding_modules, saved_embeddings, tied_modules
from peftkit.models.base import LocatedBase, locate_base, open_tokenizer
from peftkit.models.dtypes import hold_in_float32
from peftkit.models.methods import PREFIX, ROWS_PART
from peftkit.models.quantization import load_base
from peftkit.models.start import with_dropout
from peftkit.recipe.hyperparameters import Quantization
from peftkit.recipe.schema import Base, Recipe
from peftkit.runs.folder import RunFolder
from peftkit.shortage import memory_for

__all__ = [
    "AS_RECORDED", "GivenBase", "HeldBase", "Opened", "Target", "check_fit", "find_adapter", "find_held_base",
    "find_target", "find_weights", "fit_vocabulary", "model_as_base", "open_adapter", "open_base", "open_target",
    "put_adapter",
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A place that a model can be opened from, and the recipe that made it, where one is recorded."""

    kind: Literal["adapter", "model"]
    folder: str
    recipe: Recipe | None


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
    kinds: dict[str, Literal["adapter", "model"]] = {CONFIG_NAME: "adapter", "config.json": "model"}
    for inner in (folder, folder / "adapter", folder / "model"):
        kind = next((kind for name, kind in kinds.items() if (inner / name).is_file()), None)
        if kind:
            record = Record.read(inner)
            return Target(kind, str(inner), record.recipe if record else None)
    what = "holds neither a run, an adapter nor a model."
    remedy = "An unfinished run has none; otherwise name the folder that holds config.json or adapter_config.json."
    raise TargetError(what, where=name, remedy=remedy)


def find_weights(folder: Path) -> Path:
    """The folder of an adapter's or a whole model's own files, given that or the run that made it.

    Raises:
        TargetError: there is none.
    """
    if not folder.is_dir():
        raise TargetError("there is no such folder.", where=str(folder), remedy="Name a run or an adapter.")
    return Path(find_target(str(folder)).folder)


def find_adapter(folder: Path) -> Path:
    """The adapter's own folder, given that or the run that made it.

    Raises:
        TargetError: there is no adapter.
    """
    target = find_target(str(folder)) if folder.is_dir() else None
    if target and target.kind == "adapter":
        return Path(target.folder)
    raise TargetError("is not an adapter.", where=str(folder), remedy="Name the run or folder of an adapter.")


@dataclass(frozen=True)
class HeldBase:
    """The base of an adapter, and how it is held."""

    base: LocatedBase
    config: Any
    quantization: Quantization | None
    dtype: str
    """Torch's name of the dtype that it is held, or computed, in."""

    def structure(self) -> Any:
        """The base without weights, on the meta device."""
        return self.base.structure(self.config)

    def load(self, device: str) -> Any:
        """The base with its weights, on its device.

        Raises:
            BaseError: it cannot be opened.
        """
        return load_base(self.base, self.config, self.quantization, self.dtype, device)


def find_held_base(adapter: Adapter, given: GivenBase = AS_RECORDED) -> HeldBase:
    """The base of an adapter that has been seen to be sound, and to be this base's.

    The base that an adapter without a record names is opened only when the command line says so too.

    Raises:
        TargetError: the adapter was changed, or the base is not there or not the one that it was trained on.
    """
    adapter.check_sound()
    record = adapter.record
    if record is None:
        if given.model is None:
            named = adapter.config.get("base_model_name_or_path")
            what = f"was not made by peftkit, and names {named!r} as its base, which is not opened unasked."
            raise TargetError(what, where=str(adapter.folder), remedy="Name its base with --base.")
        what = "whether it was changed since, which weights of the base it was trained on, and if quantised"
        console.warning(f"{adapter.folder} has no {RECORD_NAME}: {what}, cannot be checked.")
        base = _locate(adapter, Base(model=given.model))
        return HeldBase(base, base.config(), given.quantization, "float32")
    if given.quantization is not None:
        what = "records how its base was quantised."
        raise TargetError(what, where=str(adapter.folder), remedy="Leave out --quantization.")
    own = record.recipe.base
    as_trained = own.model_copy(update={"revision": record.base["revision"]})  # a branch may have moved on since
    base = _locate(adapter, as_trained if given.model is None else Base(model=given.model))
    if base.fingerprint != record.base["sha256"]:
        what = f"was trained on another {record.base['model']} than {base.folder}."
        remedy = "Weights or configuration differ; bring back that base, or name its place with --base."
        raise TargetError(what, where=str(adapter.folder), remedy=remedy)
    return HeldBase(base, with_dropout(base.config(), own.dropout), record.recipe.base_quantization, record.base_dtype)


def model_as_base(model: Base) -> HeldBase:
    """A whole model as it is, taken as a base of its own.

    Raises:
        TargetError: there is none.
    """
    try:
        base = locate_base(model)
    except FieldError as error:
        raise TargetError(error.what, where=str(model.model), remedy=error.remedy) from error
    return HeldBase(base, base.config(), None, "float32")


def check_fit(adapter: Adapter, held: HeldBase) -> None:
    """See that an adapter has just the tensors that its configuration calls for on this base, in their shapes.

    Raises:
        TargetError: it has not, or changes a matrix that input and head share.
    """
    place = str(adapter.folder / WEIGHTS_NAME)
    structure = held.structure()
    _check_vocabulary(adapter, structure)
    fit_vocabulary(structure, adapter)
    tied = tied_modules(structure)
    shared = next((module for module in adapter.updates if module in tied), None)
    if shared:
        what = f"adapts {shared}, which is tied: input embedding and head are one matrix, and would no longer be."
        remedy = "Train it again without; peftkit's own recipes refuse such a target."
        raise TargetError(what, where=str(adapter.folder), remedy=remedy)
    in_base = {int(number) for name, _ in structure.named_modules() for number in re.findall(r"\.(\d+)$", name)}
    in_file = {int(number) for name in adapter.tensors for number in re.findall(r"\.(\d+)\.", name)}
    if in_file and in_base and max(in_file) > max(in_base):  # of a deeper model
        what = f"holds tensors for layer {max(in_file)}, but the base's last is {max(in_base)}."
        raise TargetError(what, where=place, remedy="It belongs to a base with more layers.")
    tables = {*saved_embeddings(structure), *(f"{PREFIX}{module}.{ROWS_PART}" for module in tied[1:])}
    wanted, found = _wanted_shapes(adapter, structure), adapter.tensors
    faults = {
        "is missing": sorted({*wanted} - {*found}),
        "is one too many": sorted({*found} - {*wanted} - tables),
        "has another shape": [name for name in {*wanted} & {*found} - tables if wanted[name] != found[name].shape],
    }
    for what, names in faults.items():
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

    from peftkit.models.kernels import use_row_kernels

    with memory_for("the adapter", where=str(adapter.folder), remedy="Free memory that others use."):
        fit_vocabulary(model, adapter)
        hold_in_float32(model, adapter.whole)  # as training held them
        with _by_peft(adapter):
            found = PeftModel.from_pretrained(model, str(adapter.folder), config=_library_config(adapter, model))
        use_row_kernels(found)
        return found


def fit_vocabulary(model: Any, adapter: Adapter) -> None:
    """Give embedding and head of an adapter's base as many rows as the adapter was trained with."""
    vocabulary = _vocabulary(adapter, model)
    if vocabulary != model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)


def _locate(adapter: Adapter, base: Base) -> LocatedBase:
    where, remedy = str(adapter.folder), "Bring it back, or name its place with --base."
    place = Path(base.model or "").expanduser()
    if str(base.model).startswith(("/", ".", "~")) and not place.is_dir():
        raise TargetError(f"its base is not there: there is no folder {place}.", where=where, remedy=remedy)
    try:
        return locate_base(base)
    except FieldError as error:
        recipe = RunFolder(adapter.folder.parent).recipe
        if isinstance(error, UnfetchedError) and recipe.is_file() and base.revision:
            remedy = error.remedy_for(str(recipe), f" --set base.revision={base.revision}")
        elif isinstance(error, UnfetchedError):
            remedy = str(error.remedy)
        raise TargetError(f"its base cannot be opened: {error.what}", where=where, remedy=remedy) from error


def _wanted_shapes(adapter: Adapter, structure: Any) -> dict[str, tuple[int, ...]]:
    """The tensors that PEFT would save for the adapter's configuration on this structure."""
    from peft import get_peft_model, get_peft_model_state_dict

    with _by_peft(adapter):
        adapted = get_peft_model(structure, _library_config(adapter, structure), low_cpu_mem_usage=True)
        tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _vocabulary(adapter: Adapter, structure: Any) -> int:
    """Rows of the embedding that an adapter was saved with: its own, or the base's with those that it adds."""
    saved = next((adapter.tensors[name] for name in saved_embeddings(structure) if name in adapter.tensors), None)
    last = max((max(rows.ids) for rows in adapter.rows.values()), default=-1)
    return saved.shape[0] if saved else max(int(structure.get_input_embeddings().num_embeddings), last + 1)


def _check_vocabulary(adapter: Adapter, structure: Any) -> None:
    """See that no row of embedding or head would be made up."""
    had, has = structure.get_input_embeddings().num_embeddings, _vocabulary(adapter, structure)
    saved = {module for name, module in saved_embeddings(structure).items() if name in adapter.tensors}
    for module in embedding_modules(structure)[: 1 if tied_modules(structure) else None]:
        ids = adapter.rows[f"{module}.weight"].ids if f"{module}.weight" in adapter.rows else []
        if set(range(had, has)) - set(ids) and module not in saved:
            what = f"has {has:,} tokens, its base {had:,}, and the new rows of {module} are not all in it."
            remedy = "Name the base with these rows with --base, or save it with save_embedding_layers=True."
            raise TargetError(what, where=str(adapter.folder), remedy=remedy)


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


@contextmanager
def _by_peft(adapter: Adapter) -> Iterator[None]:
    """Turn what PEFT raises within the block into one error, without its warnings: what is missing is an error here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        what = f"cannot be put on its base: {first_line(error)}"
        remedy = "The file is damaged or belongs to another base; train or copy it again."
        raise TargetError(what, where=str(adapter.folder), remedy=remedy) from error


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode on its device, with its tokenizer."""

    model: Any
    tokenizer: Any
    target: Target


def open_target(target: Target, device: str, given: GivenBase = AS_RECORDED) -> Opened:
    """Open a target on `device`, as it was trained: an adapter on the very base, quantised or not, that it belongs on.

    Raises:
        TargetError: it is damaged, or its base is not the one it was trained on.
    """
    if target.kind == "adapter":
        model, tokenizer = open_adapter(Path(target.folder), device, given)
        return Opened(model.eval(), tokenizer, target)
    if given != AS_RECORDED:
        raise TargetError("is a whole model, which has no base.", where=target.folder, remedy="Leave out --base.")
    there = Path(target.folder).expanduser().exists()
    name, _, revision = (target.folder, "", "") if there else target.folder.partition("@")  # of a name of the hub
    return open_base(Base(model=name, revision=revision or None), device, target)


def open_base(base: Base, device: str, target: Target | None = None) -> Opened:
    """Open the base that a recipe names, whole and untouched; `target` is what the command line calls it.

    Raises:
        TargetError: there is none.
    """
    held = model_as_base(base)
    return Opened(held.load(device).eval(), held.base.tokenizer(), target or Target("model", str(base.model), None))


def open_adapter(folder: Path, device: str, given: GivenBase = AS_RECORDED) -> tuple[Any, Any]:
    """An adapter on a freshly loaded base of its own, and the tokenizer.

    Raises:
        TargetError: tensors are missing or damaged, or the base has changed since.
    """
    adapter = Adapter.read(folder)
    held = find_held_base(adapter, given)
    check_fit(adapter, held)
    tokenizer = open_tokenizer(folder) if has_tokenizer(folder) else held.base.tokenizer()
    return put_adapter(held.load(device), adapter), tokenizer
