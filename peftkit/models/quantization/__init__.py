"""Quantised bases, one file for each library that makes them; `peftkit.recipe.quantizers` lists them.

A back end says how a base is loaded with its linear layers quantised, what a weight takes, how it is turned back into
plain numbers, and how nearly a model with these computes the same. No other file asks which back end it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from peftkit.errors import BaseError
from peftkit.recipe.hyperparameters import Quantization
from peftkit.recipe.quantizers import check_available
from peftkit.shortage import memory_for

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from peftkit.models.base import LocatedBase

__all__ = ["Backend", "backend_of", "load_base", "quantised_modules"]


class Backend(ABC):
    """One library that quantises."""

    advice: str = ""
    """What to do where it does not work on a machine."""

    @abstractmethod
    def library(self) -> str:
        """What of the library is loaded, for `doctor`.

        Raises:
            RunError: it does not work on this machine.
        """

    @abstractmethod
    def load(
        self, base: LocatedBase, config: PreTrainedConfig, quantization: Quantization, dtype: str, device: str
    ) -> Any:
        """Load a base with its linear layers quantised; `dtype` is what their matmuls are computed in."""

    @abstractmethod
    def modules(self, model: Any) -> dict[str, Any]:
        """The modules of a model whose weights are quantised, by name."""

    @abstractmethod
    def prepared(self, structure: Any, quantization: Quantization, dtype: str) -> dict[str, Any]:
        """The modules of an empty model, by name, that `load` would quantise; the model is used up."""

    @abstractmethod
    def rounded(self, module: Any, weight: torch.Tensor) -> torch.Tensor:
        """A weight [out features, in features] of a prepared module after it was quantised and turned back.

        It is float32, on the CPU.
        """

    @abstractmethod
    def bytes_of_a_weight(self, quantization: Quantization) -> float:
        """What a weight takes, with its share of the scales."""

    @abstractmethod
    def tolerance(self, quantization: Quantization) -> float:
        """Relative difference of logits accepted of a quantised and a dequantised base; 0 for rounding alone."""

    @abstractmethod
    def exact(self, module: Any) -> AbstractContextManager[None]:
        """Let a quantised module compute in float32 within the block, with the bias of the base's files."""

    def lora_layer(self) -> Any:
        """PEFT's class of LoRA layers on modules of which `dense` gives a weight; None where there are none."""
        return None

    def dense(self, module: Any) -> Callable[[], torch.Tensor] | None:
        """Gives the weight [out features, in features] of a module; None where only its library can compute with it."""
        del module
        return None

    @abstractmethod
    def describe(self, quantization: Quantization) -> tuple[str, str]:
        """The dtype of the weights in a word, as `nf4`, and in a few, as the card has it."""


def backend_of(quantization: Quantization) -> Backend:
    """The back end that a recipe's section names; its library need not be installed."""
    return _named(quantization.backend)


def load_base(
    base: LocatedBase, config: PreTrainedConfig, quantization: Quantization | None, dtype: str, device: str
) -> Any:
    """Load a base on its device: quantised, or as it is in `dtype`.

    Raises:
        BaseError: it cannot be opened, or nothing in it was quantised.
        FieldError: the library that quantises is not installed.
        MemoryRunError: it does not fit into memory.
    """
    what = "the base, quantised," if quantization else f"the base in {dtype}"
    remedy = "Free memory that others use" if quantization else "Quantise it (method: qlora), load it in 16 bits"
    with memory_for(what, where=base.reference, remedy=f"{remedy}, or use a smaller base."):
        if quantization is not None:
            check_available(quantization.backend)
            backend = backend_of(quantization)
            model = backend.load(base, config, quantization, dtype, device)
            if not backend.modules(model):
                raise BaseError("has no linear layer to quantise.", where=base.reference, remedy="Use method: lora.")
            return model
        return base.load(config, dtype).to(device)


def quantised_modules(model: Any) -> dict[Any, Backend]:
    """The modules of a live model whose weights are quantised, each with its back end."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return {}
    method = config["quant_method"] if isinstance(config, dict) else config.quant_method
    backend = _named(str(getattr(method, "value", method)))
    return dict.fromkeys(backend.modules(model).values(), backend)


def _named(name: str) -> Backend:
    backend: Backend = import_module(f"{__name__}.{name}").BACKEND
    return backend
