"""The quantised base: made by bitsandbytes while the weights are read, and turned back into plain numbers."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from peftkit.errors import BaseError
from peftkit.models.base import LocatedBase
from peftkit.recipe.hyperparameters import Quantization
from peftkit.recipe.schema import Recipe

__all__ = ["dequantised_base", "load_base", "load_quantised", "quantised_modules"]


def load_quantised(
    base: LocatedBase, config: PreTrainedConfig, quantization: Quantization, compute_dtype: str, device: str
) -> Any:
    """Load a base with its linear layers quantised; `compute_dtype` is what the products are computed in.

    Raises:
        BaseError: nothing in the base was quantised.
    """
    with _hushed():
        model = base.load(
            config,
            compute_dtype,
            quantization_config=BitsAndBytesConfig(
                **quantization.model_dump(), bnb_4bit_compute_dtype=getattr(torch, compute_dtype)
            ),
            device_map={"": device},
        )
    modules = quantised_modules(model)
    if not modules:
        raise BaseError("has no linear layer to quantise.", where=base.reference, remedy="Use method: lora.")
    if device == "cpu":
        for module in modules.values():
            # Where a CPU has AVX512-BF16, the first evaluation would repack the weights for a kernel that computes in
            # bf16: other logits than in training, which cannot go on with such weights at all.
            module.support_avx512bf16_for_cpu = False
    return model


def load_base(base: LocatedBase, config: PreTrainedConfig, recipe: Recipe, dtype: str, device: str) -> Any:
    """Load a base on its device as the recipe's method holds it: quantised for `qlora`, and in `dtype` otherwise.

    Raises:
        BaseError: it cannot be opened.
    """
    if recipe.method == "qlora":
        return load_quantised(base, config, recipe.quantization, dtype, device)
    return base.load(config, dtype).to(device)


def quantised_modules(model: Any) -> dict[str, Any]:
    """The modules whose weights bitsandbytes holds, by name."""
    if not hasattr(model.config, "quantization_config"):
        return {}
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)}


@torch.no_grad()
def dequantised_base(quantised: Any, base: LocatedBase, config: PreTrainedConfig) -> Any:
    """A plain float32 model that computes what the quantised one does: its rounded weights, with nothing left to round.

    The weights go into a freshly loaded model, whose layers keep their own kind: a quantised layer is always a Linear,
    whose weight is the transpose of a Conv1D's, and a square one would fit the wrong way round.
    """
    fresh = base.load(config, "float32")
    for name, module in quantised_modules(quantised).items():
        weight = _dequantised_weight(module)
        place = fresh.get_submodule(name.removesuffix(".base_layer"))  # PEFT's name of a layer inside its adapter
        place.weight.copy_(weight.T if isinstance(place, Conv1D) else weight)
    return fresh


def _dequantised_weight(module: Any) -> torch.Tensor:
    """A quantised layer's weight as float32 on the CPU, [out features, in features]."""
    import bitsandbytes

    weight = module.weight
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        numbers: torch.Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return numbers.float().cpu()
    # after its first forward pass, an 8-bit layer keeps its numbers and their scales in its state
    integers: torch.Tensor = weight.data if weight.CB is None else weight.CB
    scales: torch.Tensor = module.state.SCB if weight.SCB is None else weight.SCB
    return integers.float().cpu() * (scales.float().cpu()[:, None] / 127)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without bitsandbytes' notes on which of its kernels this machine has."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="bitsandbytes")
            yield
    finally:
        logger.setLevel(level)
