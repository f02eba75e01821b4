"""Where a base is, and how it is opened: its configuration, tokenizer, empty structure, model, or single tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from traceback import walk_tb
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, core_model_loading
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from peftkit.errors import BaseError, FieldError, first_line
from peftkit.hub import WEIGHTS_NAME, Repo, cached_folder, find_base
from peftkit.models.dtypes import loading_in
from peftkit.recipe.quantizers import quiet_loggers
from peftkit.recipe.references import BUILTIN_PREFIX
from peftkit.recipe.schema import Base
from peftkit.storage import read_json, sha256_of_file, sha256_of_json

__all__ = [
    "BaseWeights", "LocatedBase", "StoredWeight", "base_at_hand", "locate_base", "open_tokenizer",
    "weight_files",
]  # fmt: skip

# Whatever opens a base is quiet: peftkit says what users need to know.
quiet_loggers()
logging.set_verbosity_error()
logging.disable_progress_bar()

_ASSETS = Path(__file__).resolve().parents[1] / "assets"
_INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class LocatedBase:
    """A base whose files are on this machine."""

    reference: str
    """What the recipe calls it: a hub name, a folder, or `builtin:…`."""

    folder: Path
    revision: str | None
    """The commit of a hub model."""

    def config(self) -> PreTrainedConfig:
        """The architecture.

        Raises:
            BaseError: the folder holds no configuration of a causal language model that Transformers has.
        """
        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise _unusable(self.reference, error) from error

    def tokenizer(self) -> Any:
        """The base's own tokenizer.

        Raises:
            BaseError: the base has none.
        """
        return open_tokenizer(self.folder)

    def structure(self, config: PreTrainedConfig) -> Any:
        """The model's modules without weights, on the meta device: what is in it, known in milliseconds."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=False)

    def load(self, config: PreTrainedConfig, dtype: str, *, every_tensor: bool = False, **options: Any) -> Any:
        """The model with its weights, its linear layers in `dtype`; `options` go to Transformers.

        In float16 the other weights are float32: see `peftkit.models.dtypes.float32_modules`. Files of others may hold
        tensors that the architecture does not have, as masks; with `every_tensor` these are an error too.

        Raises:
            BaseError: the weights are not there as safetensors in this very folder, or do not fit the configuration.
        """
        weight_files(self.folder)  # Transformers would follow an index anywhere
        try:
            with loading_in(dtype, lambda: self.structure(config)):
                options |= {"dtype": getattr(torch, dtype), "use_safetensors": True, "trust_remote_code": False}
                options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # they are reported below
                model, report = AutoModelForCausalLM.from_pretrained(self.folder, config=config, **options)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise _unusable(self.reference, error) from _conversion_error(error) or error
        missing = sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"])
        strange = sorted(report["unexpected_keys"]) if every_tensor else []
        for what, names in (("has no fitting weights for", missing), ("holds what is no weight of it:", strange)):
            if names:
                named = f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
                remedy = "Use a whole checkpoint of the architecture that its config.json names."
                raise BaseError(f"{what} {named}.", where=self.reference, remedy=remedy)
        return model

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of the configuration and of every weight file.

        Adapters are stored with it: on another base they load without complaint and mean nothing.
        """
        return sha256_of_json(self.file_hashes)

    @cached_property
    def file_hashes(self) -> dict[str, str]:
        """SHA-256 of the configuration and of every weight file, by name."""
        files = [*weight_files(self.folder), self.folder / "config.json"]
        with ThreadPoolExecutor() as pool:  # hashing lets other threads run
            return dict(zip([file.name for file in files], pool.map(sha256_of_file, files), strict=True))

    def record(self) -> dict[str, Any]:
        """What a manifest says about the base."""
        named = {"model": self.reference, "revision": self.revision}
        return {**named, "sha256": self.fingerprint, "files": self.file_hashes}


def locate_base(base: Base, *, weights: bool = True, field: str = "base.model") -> LocatedBase:
    """Find a base's folder; for a hub name, in the cache or by fetching it, without its weights if these can wait.

    Raises:
        FieldError: there is no such base, or it cannot be fetched; `field` is where the recipe names it.
    """
    if base.model is None:
        raise FieldError(field, "is not set; a base made from init has no files.")
    if base.model.startswith(BUILTIN_PREFIX):
        return LocatedBase(base.model, _builtin_folder(base.model), None)
    if Path(base.model).expanduser().is_dir():
        folder = Path(base.model).expanduser().resolve()
        if weights and not any(folder.glob("*.safetensors")):
            what = f"{base.model} holds no .safetensors file."
            remedy = "Save the model with save_pretrained of a current Transformers; pickled weights are not opened."
            raise FieldError(field, what, remedy=remedy)
        return LocatedBase(str(folder), folder, None)
    snapshot, names = find_base(Repo("model", base.model, base.revision, field), weights=weights)
    snapshot.bring(names)
    return LocatedBase(base.model, snapshot.folder, snapshot.commit)


def base_at_hand(base: Base) -> LocatedBase | None:
    """A base without its weights, if what else belongs to it is on this machine; nothing is fetched.

    Raises:
        FieldError: there is no such builtin base.
    """
    name = base.model or ""
    if name.startswith(BUILTIN_PREFIX) or Path(name).expanduser().is_dir():
        return locate_base(base, weights=False)
    folder = cached_folder(Repo("model", name, base.revision, "base.model"))
    return LocatedBase(name, folder, folder.name) if folder and (folder / "config.json").is_file() else None


def _builtin_folder(reference: str) -> Path:
    folder = _ASSETS / reference.removeprefix(BUILTIN_PREFIX)
    if not (folder / "config.json").is_file():
        names = sorted(path.parent.name for path in _ASSETS.glob("*/config.json"))
        raise FieldError("base.model", f"there is no {reference}.", remedy=f"There are: {', '.join(names) or 'none'}.")
    return folder


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        BaseError: there is none, or it marks no end of text, so that a model could not learn to stop.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unusable(str(folder), error) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # Transformers makes an empty one of nothing
        raise BaseError("holds no tokenizer.", where=str(folder), remedy="Save the base's tokenizer into it.")
    if tokenizer.eos_token_id is None:
        raise BaseError("its tokenizer has no end-of-text token.", where=str(folder), remedy="Set eos_token in it.")
    return tokenizer


@dataclass(frozen=True)
class StoredWeight:
    """Where a tensor is."""

    file: Path
    name: str
    """In the file."""

    shape: tuple[int, ...]
    is_float: bool
    parameter: str | None = None
    """Of the model: what the tensor is or, where it has a pattern, becomes a part of; None if the model has no use."""

    pattern: str | None = None
    """Of the conversion that makes parameters of this tensor and others, as of the matrices of single experts."""


class BaseWeights:
    """A base's tensors, under the names that Transformers gives them in the model. None of them stays in memory.

    Args:
        folder: what holds the files.
        structure: the empty model.

    Raises:
        BaseError: a file is damaged, or the index names one elsewhere.
    """

    def __init__(self, folder: Path, structure: Any) -> None:
        self._structure, self._known = structure, structure.state_dict()
        conversions = get_model_conversion_mapping(structure)
        renamings = [each for each in conversions if isinstance(each, core_model_loading.WeightRenaming)]
        self._converters = [each for each in conversions if isinstance(each, core_model_loading.WeightConverter)]
        masks = re.compile("|".join(structure._keys_to_ignore_on_load_unexpected or ["$^"]))  # that no model reads
        found: dict[str, StoredWeight] = {}
        for file in weight_files(folder):
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.offset_keys():
                        stored = opened.get_slice(name)
                        shape, is_float = tuple(stored.get_shape()), stored.get_dtype() in _FLOATS
                        found[name] = StoredWeight(file, name, shape, is_float)
            except (OSError, SafetensorError) as error:
                raise _damaged(file) from error
        in_order = sorted(found, key=core_model_loading.dot_natural_key)  # some renamings wait for a first name
        placed = {name: self._placed(found[name], renamings) for name in in_order}
        stored = (placed[name] for name in found)
        self.stored = [weight for weight in stored if weight.parameter or not masks.search(weight.name)]
        """In the order of the files, so that reading them runs forward."""

        self.stacks: dict[str, list[StoredWeight]] = {}
        """Tensors that are converted together, in the order of this, by the first parameter that they make."""

        for weight in placed.values():
            if weight.parameter and weight.pattern:
                self.stacks.setdefault(weight.parameter, []).append(weight)
        self._modules = dict(structure.named_modules())
        self._by_parameter = {each.parameter: each for each in self.stored if each.parameter and not each.pattern}

    def _placed(self, weight: StoredWeight, renamings: list[Any]) -> StoredWeight:
        """The same with its place in the model, as Transformers finds it when it loads the file."""
        name, rules = weight.name, (renamings, self._converters, self._structure.base_model_prefix, self._known)
        parameter, pattern = core_model_loading.rename_source_key(name, *rules)
        if parameter not in self._known and name in self._known:
            parameter, pattern = name, None
        return replace(weight, parameter=parameter, pattern=pattern) if parameter in self._known else weight

    def converted(self, first: str, tensors: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parameters that Transformers makes of a stack's tensors, by name."""
        by_pattern = {pattern: each for each in self._converters for pattern in each.source_patterns}
        converter = deepcopy(by_pattern[self.stacks[first][0].pattern])
        for weight, tensor in zip(self.stacks[first], tensors, strict=True):
            converter.add_tensor(first, weight.name, weight.pattern, tensor)
        made = converter.convert(first, model=self._structure, config=self._structure.config)
        return {name: each[0] if isinstance(each, list) else each for name, each in made.items()}

    def reverted(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters as the tensors that Transformers saves for them, by the names of a file."""
        tensors: dict[str, torch.Tensor] = core_model_loading.revert_weight_conversion(self._structure, {**parameters})
        return tensors

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

    def numbers(self, parameter: str) -> npt.NDArray[np.float32] | None:
        """A parameter in float32, a module's weight as [out, in]; None where the files do not hold it as such."""
        weight = self.find(parameter)
        if weight is None:
            return None
        module, _, kind = parameter.rpartition(".")
        numbers: npt.NDArray[np.float32] = self.read(weight).float().numpy()
        return numbers.T if kind == "weight" and self.is_transposed(module) else numbers

    def is_transposed(self, module: str) -> bool:
        """Whether a module holds its weight as [in, out], as GPT-2's Conv1D and embeddings do, not as [out, in]."""
        return isinstance(self._modules[module], Conv1D | nn.Embedding)


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


def _unusable(reference: str, error: Exception) -> BaseError:
    what = f"cannot be opened: {first_line(error)}"
    remedy = "It must be a causal language model in the Transformers format, with safetensors and a tokenizer."
    return BaseError(what, where=reference, remedy=remedy)


def _conversion_error(error: BaseException) -> RuntimeError | None:
    """What went wrong while Transformers made quantised weights of those in the files.

    It keeps such errors as text, continues with the next weight, and raises one at the end that says nothing of them.
    """
    for frame, _ in walk_tb(error.__traceback__):
        kept = getattr(frame.f_locals.get("loading_info"), "conversion_errors", None)
        if kept:
            return RuntimeError(str(next(iter(kept.values()))))
    return None
