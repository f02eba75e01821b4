"""The methods of training, one file each; `peftkit.recipe.methods` lists them.

A method says which modules of a base it changes and how they are prepared for training, whether training has had an
effect, and what the tensors of an adapter that it left mean: how a weight is merged, measured and compared. No other
file asks which method it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from peftkit.errors import TargetError
from peftkit.recipe.methods import METHODS

__all__ = [
    "PREFIX", "ROWS_PART", "Floats", "Overlap", "Size", "TokenRows", "TrainedRows", "TrainingMethod", "Update",
    "kinds_of_adapters", "method_named", "method_of_type", "trained_rows",
]  # fmt: skip

Floats = npt.NDArray[np.float32]
TokenRows = Mapping[str, list[int]]
"""By the name of an embedding or a head, the token ids whose rows are trained alone."""

PREFIX = "base_model.model."
"""How PEFT begins the name of every tensor that it saves."""


ROWS_PART = "token_adapter.trainable_tokens_delta"
"""How PEFT calls the rows of an embedding that it trains alone."""


class TrainedRows(NamedTuple):
    """Rows of an embedding, or of a head, that were trained alone."""

    ids: list[int]
    """The tokens whose rows they are; those beyond the base's own are of a vocabulary that grew."""

    values: Floats
    """[rows, width]."""


class Size(NamedTuple):
    """How large the change of a weight, ΔW, is; None for what needs the base's weight, or is not defined."""

    scaling: float | None
    """What the product of two matrices is multiplied by."""

    norm: float | None
    """Frobenius norm of ΔW."""

    largest: float | None
    """The largest number in ΔW, by its size."""

    effective_rank: float | None
    """Exponential of the entropy of the singular values (Roy and Vetterli 2007): about how many directions ΔW has."""


class Overlap(NamedTuple):
    """How alike two adapters' changes of one module are; None for what is not defined."""

    cosine: float | None
    """Of the angle between the two updates, taken as vectors: 1 the same direction, 0 none in common."""

    inputs: float | None
    """Share that the input directions they read have in common, from 0 to 1: the similarity of Hu et al. 2021,
    section 7.2, at both full ranks. None, as the next one, where an update is zero or no product."""

    outputs: float | None
    """The same of the output directions they write."""


class Update(ABC):
    """What an adapter does to one module. Weights are [out, in], as a Linear holds them, unless they are `turned`."""

    @property
    def rank(self) -> int | None:
        """Width of the matrices whose product it is; None where it is no product."""
        return None

    @property
    def unmergeable(self) -> str | None:
        """Why it cannot be made part of the weight; None where it can."""
        return None

    @property
    def needs_bias(self) -> bool:
        """Whether the module must have a bias for it."""
        return False

    @property
    @abstractmethod
    def beyond_product(self) -> str | None:
        """What it has that is not a product of two matrices: a sum of adapters is exact only for these."""

    @property
    @abstractmethod
    def untouched(self) -> bool:
        """Whether it is as it was before training, and changes nothing."""

    @abstractmethod
    def adapted(self, weight: Floats, *, turned: bool = False) -> Floats:
        """The weight [out, in], or if it is `turned` [in, out], that a layer with this update computes with."""

    def adapted_bias(self, bias: Floats) -> Floats | None:
        """The bias [out] that such a layer adds; None where it stays as it is."""
        del bias
        return None

    @abstractmethod
    def size(self, weight: Floats | None) -> Size:
        """How large the change of a weight [out, in] is; None for the weight where the base is not at hand."""

    @abstractmethod
    def overlap(self, other: Update) -> Overlap | None:
        """How alike it is to another adapter's; None where they cannot be compared."""


class TrainingMethod(ABC):
    """One way to train. The defaults are those of a method that leaves an adapter of PEFT's."""

    name: str = ""
    """What it is called."""

    adapter: str | None = None
    """What it leaves, as in `a LoRA adapter`; None for a whole model."""

    tag: str | None = None
    """What the hub knows it by."""

    peft_type: str | None = None
    """PEFT's name for it, as `adapter_config.json` has it."""

    parts: tuple[str, ...] = ()
    """How the names of an adapter's tensors end that belong to a module's update."""

    beginning: str = ""
    """What an update is before training, as `its B is all zeros`."""

    strength: str = ""
    """The recipe field that makes the effect of an adapter stronger, if there is one."""

    smaller: str = ""
    """What makes it need less memory."""

    trains_rows: bool = False
    """Whether single rows of an embedding can be trained with its adapter."""

    def targets(self, structure: Any, settings: Any) -> list[str]:
        """The full names of the modules that it changes, from the model's structure alone (the meta device will do).

        `settings` is the recipe section of the adapter, here and below; None where there is none.

        Raises:
            FieldError: the recipe names a module that the model does not have, or that cannot be changed.
        """
        del structure, settings
        return []

    @abstractmethod
    def attach(
        self, model: Any, settings: Any, targets: list[str], base_folder: Path, rows: TokenRows | None = None
    ) -> Any:
        """The model to train: all that is trained is float32 and requires gradients, and the rest is frozen.

        The caller has set the seed. `base_folder` is where the base was opened from, and `rows` are those of its
        embedding and head that are trained alone.
        """

    def state(self, model: Any) -> dict[str, Any]:
        """Copies of what `has_effect` compares with, taken before training."""
        del model
        return {}

    @abstractmethod
    def has_effect(self, model: Any, before: Mapping[str, Any]) -> bool:
        """Whether training has changed what the model computes; `before` is the `state` of its beginning."""

    def can_be_disabled(self, settings: Any) -> bool:
        """Whether the model computes as its base does while the adapter is disabled."""
        del settings
        return True

    def summary(self, settings: Any, kinds: list[str]) -> str:
        """The settings of the adapter in a line for the card; `kinds` are the names of its modules in their layers."""
        del settings
        return f"on {', '.join(kinds)}" if kinds else ""

    def damaged(self, config: Mapping[str, Any]) -> list[str]:
        """The settings in an adapter's configuration that its updates depend on and that are not of their type."""
        del config
        return []

    def updates(
        self, folder: Path, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Floats]]
    ) -> dict[str, Update]:
        """What an adapter does, by module.

        Args:
            folder: of the adapter, for messages.
            config: its configuration.
            parts: by module, its tensors, each by how its name ends.

        Raises:
            TargetError: a tensor is missing, or the adapter is of a kind that cannot be merged.
        """
        del folder, config, parts
        return {}


def method_named(name: str) -> TrainingMethod:
    """The code of a method that a recipe names."""
    method: TrainingMethod = import_module(f"{__name__}.{METHODS[name].code}").METHOD
    return method


def method_of_type(peft_type: str) -> TrainingMethod | None:
    """The method that leaves adapters of one of PEFT's types; None where there is none."""
    return next((method for method in _all() if method.peft_type == peft_type), None)


def trained_rows(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Floats]) -> dict[str, TrainedRows]:
    """The rows in an adapter, by the base's name of the parameter; `tensors` are those of `ROWS_PART`, by their names.

    Raises:
        TargetError: the configuration does not say which tokens they are of.
    """
    given, found = config.get("trainable_token_indices") or {}, {}
    for name, values in tensors.items():
        module = name.removeprefix(PREFIX).removesuffix(f".{ROWS_PART}")
        named = given if isinstance(given, dict) else {module: given}
        ids: list[int] = next((ids for key, ids in named.items() if f".{module}".endswith(f".{key}")), [])
        if len(ids) != len(values) or not all(type(each) is int and each >= 0 for each in ids):
            what = f"its trainable_token_indices do not say which tokens the rows of {module} are of."
            raise TargetError(what, where=str(folder), remedy="Copy the adapter again.")
        found[f"{module}.weight"] = TrainedRows(ids, values)
    return found


def kinds_of_adapters() -> list[str]:
    """What the adapters are called that can be opened."""
    return [method.name for method in _all() if method.adapter]


def _all() -> list[TrainingMethod]:
    return list(dict.fromkeys(method_named(name) for name in METHODS))
