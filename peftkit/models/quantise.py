"""The quantised base: made by bitsandbytes while the weights are read, and turned back into plain numbers."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig

from peftkit.errors import BaseError, RunError
from peftkit.models.base import LocatedBase
from peftkit.recipe.hyperparameters import Quantization
from peftkit.shortage import memory_for

__all__ = ["Rounding", "compute_in_float32", "load_base", "load_quantised", "native_library", "quantised_modules"]


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
            quantization_config=_library_config(quantization, compute_dtype),
            device_map={"": device},
        )
    modules = quantised_modules(model)
    if not modules:
        raise BaseError("has no linear layer to quantise.", where=base.reference, remedy="Use method: lora.")
    for module in modules.values():
        if module.bias is not None:  # the live one is rounded to what its layer is given, in place
            module.bias_of_base = module.bias.detach().clone()
    if device == "cpu":
        for module in modules.values():
            # Where a CPU has AVX512-BF16, the first evaluation would repack the weights for a kernel that computes in
            # bf16: other logits than in training, which cannot go on with such weights at all.
            module.support_avx512bf16_for_cpu = False
            module.init_8bit_state = partial(_init_8bit_state, module)
    return model


def load_base(
    base: LocatedBase, config: PreTrainedConfig, quantization: Quantization | None, dtype: str, device: str
) -> Any:
    """Load a base on its device: quantised, or as it is in `dtype`.

    Raises:
        BaseError: it cannot be opened.
        MemoryRunError: it does not fit into memory.
    """
    what = "the base, quantised," if quantization else f"the base in {dtype}"
    remedy = "Free memory that others use" if quantization else "Quantise it (method: qlora), load it in 16 bits"
    with memory_for(what, where=base.reference, remedy=f"{remedy}, or use a smaller base."):
        if quantization is not None:
            return load_quantised(base, config, quantization, dtype, device)
        return base.load(config, dtype).to(device)


def quantised_modules(model: Any) -> dict[str, Any]:
    """The modules whose weights bitsandbytes holds, by name."""
    return _quantised_modules(model) if hasattr(model.config, "quantization_config") else {}


def compute_in_float32(model: Any) -> Any:
    """Let a model compute in float32 with the weights that it holds, quantised or in half precision.

    What the weights mean is then not blurred by how a product is rounded; and half precision would take a CPU that has
    no instructions for it a hundred times as long.
    """
    quantised = quantised_modules(model).values()
    packed = {id(module.weight) for module in quantised}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and id(tensor) not in packed:
            tensor.data = tensor.data.float()
    for module in quantised:
        module.compute_dtype = torch.float32
        state = getattr(module.weight, "quant_state", None)
        if state is not None:
            state.dtype = torch.float32
    return model


def native_library() -> str:
    """The file of machine code that bitsandbytes has loaded, and what it is for.

    Raises:
        RunError: it has loaded none, or on a GPU none for GPUs.
    """
    with _hushed():
        from bitsandbytes.cextension import lib
    loaded = vars(lib).get("_lib")  # what stands in for a missing library has every attribute that is asked for
    remedy = "`python -m bitsandbytes` tells why; BNB_CUDA_VERSION names another version of CUDA. full and lora work."
    if loaded is None:
        raise RunError("no native library of bitsandbytes could be loaded", remedy=remedy)
    if torch.cuda.is_available() and not lib.compiled_with_cuda:
        raise RunError(f"{Path(loaded._name).name} is loaded, which knows no GPU", remedy=remedy)
    return f"{Path(loaded._name).name}, for {'CUDA' if lib.compiled_with_cuda else 'the CPU'}"


class Rounding:
    """What quantising does to a base's weights, one of them at a time and without the model."""

    def __init__(self, structure: Any, quantization: Quantization, dtype: str) -> None:
        """Find which modules of `structure`, the empty model, are quantised; it is used up.

        `dtype` is torch's name of the number type that the base is loaded in.
        """
        from transformers.quantizers.auto import AutoHfQuantizer

        quantizer = AutoHfQuantizer.from_config(_library_config(quantization, dtype), pre_quantized=False)
        with _hushed():
            quantizer.preprocess_model(structure, dtype=getattr(torch, dtype), device_map={"": "cpu"})
        self._modules = _quantised_modules(structure)

    def __contains__(self, module: str) -> bool:
        return module in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    @torch.no_grad()
    def rounded(self, module: str, weight: torch.Tensor) -> torch.Tensor:
        """A weight [out features, in features] after it was quantised and turned back: float32, on the CPU."""
        layer = self._modules[module]
        empty = layer.weight
        settings = {name: value for name, value in empty.__dict__.items() if name != "SCB"}
        layer.weight = type(empty)(weight.contiguous(), requires_grad=False, **settings).to("cpu")
        numbers = _dequantised_weight(layer)
        layer.weight = empty
        return numbers


def _quantised_modules(model: Any) -> dict[str, Any]:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt  # takes a second, and plain models do without

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)}


def _library_config(quantization: Quantization, dtype: str) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(**quantization.model_dump(), bnb_4bit_compute_dtype=getattr(torch, dtype))


def _init_8bit_state(layer: Any) -> None:
    """Begin an 8-bit layer's forward pass without losing its scales.

    On a CPU, PEFT's DoRA moves the weight anew at each step, which brings back its numbers and not its scales;
    bitsandbytes would replace those that it keeps in the layer's state with nothing.
    """
    if layer.weight.SCB is None:
        layer.weight.SCB = layer.state.SCB
    type(layer).init_8bit_state(layer)


def _dequantised_weight(module: Any) -> torch.Tensor:
    """A new quantised layer's weight as float32, [out features, in features]."""
    import bitsandbytes

    weight = module.weight
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        weight.quant_state.dtype = torch.float32  # or the numbers would be rounded to the type they came from
        numbers: torch.Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return numbers
    integers: torch.Tensor = weight.CB
    scales: torch.Tensor = weight.SCB
    return integers.float() * (scales.float()[:, None] / 127)


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
