"""bitsandbytes: NF4 and FP4 (Dettmers et al. 2023), and LLM.int8() (Dettmers et al. 2022)."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig

from peftkit.errors import RunError
from peftkit.models.base import LocatedBase
from peftkit.models.quantization import Backend
from peftkit.recipe.hyperparameters import Quantization

__all__ = ["BACKEND"]

_INT8_TOLERANCE = 0.1
"""Relative difference of logits that is accepted of an 8-bit base. LLM.int8() rounds what it multiplies to a 127th of
the largest (Dettmers et al. 2022), so the last bit of a float may decide about a whole step."""

_BYTES_4_BIT = 0.5 + 4 / 64
_BYTES_4_BIT_TWICE = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits: half a byte, a scale for each 64, and the scale of 256 scales (Dettmers et al. 2023)."""


class _BitsAndBytes(Backend):
    advice = "Only method: qlora needs it; python -m bitsandbytes says more."

    def library(self) -> str:
        """The file of machine code that is loaded, and what it is for."""
        with _hushed():
            from bitsandbytes.cextension import lib
        loaded = vars(lib).get("_lib")  # what stands in for a missing library has every attribute that is asked for
        remedy = "`python -m bitsandbytes` says why; BNB_CUDA_VERSION names another version of CUDA."
        remedy += " full and lora work."
        if loaded is None:
            raise RunError("no native library of bitsandbytes could be loaded", remedy=remedy)
        if torch.cuda.is_available() and not lib.compiled_with_cuda:
            raise RunError(f"{Path(loaded._name).name} is loaded, which knows no GPU", remedy=remedy)
        return f"{Path(loaded._name).name}, for {'CUDA' if lib.compiled_with_cuda else 'the CPU'}"

    def load(
        self, base: LocatedBase, config: PreTrainedConfig, quantization: Quantization, dtype: str, device: str
    ) -> Any:
        asked = _library_config(quantization, dtype, lambda: base.structure(deepcopy(config)))
        with _hushed():
            model = base.load(config, dtype, quantization_config=asked, device_map={"": device})
        for module in self.modules(model).values():
            if module.bias is not None:  # the live one is rounded to what its layer is given, in place
                module.bias_of_base = module.bias.detach().clone()
            if device == "cpu":
                # Where a CPU has AVX512-BF16, the first evaluation would repack the weights for a kernel that computes
                # in bf16: other logits than in training, which cannot continue with such weights at all.
                module.support_avx512bf16_for_cpu = False
                module.init_8bit_state = partial(_init_8bit_state, module)
        return model

    def modules(self, model: Any) -> dict[str, Any]:
        from bitsandbytes.nn import Linear4bit, Linear8bitLt  # takes a second, and plain models do without

        return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)}

    def prepared(self, structure: Any, quantization: Quantization, dtype: str) -> dict[str, Any]:
        from transformers.quantizers.auto import AutoHfQuantizer

        asked = _library_config(quantization, dtype, lambda: structure)
        quantizer = AutoHfQuantizer.from_config(asked, pre_quantized=False)
        with _hushed():
            quantizer.preprocess_model(structure, dtype=getattr(torch, dtype), device_map={"": "cpu"})
        return self.modules(structure)

    @torch.no_grad()
    def rounded(self, module: Any, weight: torch.Tensor) -> torch.Tensor:
        empty = module.weight
        settings = {name: value for name, value in empty.__dict__.items() if name != "SCB"}
        module.weight = type(empty)(weight.contiguous(), requires_grad=False, **settings).to("cpu")
        numbers = _dequantised_weight(module)
        module.weight = empty
        return numbers

    def bytes_of_a_weight(self, quantization: Quantization) -> float:
        if quantization.load_in_8bit:
            return 1.0
        return _BYTES_4_BIT_TWICE if quantization.bnb_4bit_use_double_quant else _BYTES_4_BIT

    def tolerance(self, quantization: Quantization) -> float:
        return _INT8_TOLERANCE if quantization.load_in_8bit else 0.0

    @contextlib.contextmanager
    def exact(self, module: Any) -> Iterator[None]:
        """The live bias is rounded while the model trains; the frozen one of the base's files is in its place."""
        state = getattr(module.weight, "quant_state", None)
        before = module.compute_dtype if hasattr(module, "compute_dtype") else None, state.dtype if state else None
        bias = module.bias
        if state is not None:
            module.compute_dtype = state.dtype = torch.float32
        if bias is not None:
            own = bias if bias.requires_grad else getattr(module, "bias_of_base", bias)
            module._parameters["bias"] = own.detach().to(bias.device).float()
        try:
            yield
        finally:
            if state is not None:
                module.compute_dtype, state.dtype = before
            module._parameters["bias"] = bias

    def lora_layer(self) -> Any:
        from peft.tuners.lora import Linear4bit

        return Linear4bit

    def dense(self, module: Any) -> Callable[[], torch.Tensor] | None:
        """Of 4 bits, unless they were packed anew for a CPU, which is another layout."""
        state = getattr(module.weight, "quant_state", None)
        if state is None or getattr(state, "packing_format_for_cpu", False):
            return None
        from bitsandbytes.functional import dequantize_4bit

        return lambda: dequantize_4bit(module.weight.data, state)

    def describe(self, quantization: Quantization) -> tuple[str, str]:
        if quantization.load_in_8bit:
            return "int8", "8 bits, LLM.int8()"
        double = ", scales quantised too" if quantization.bnb_4bit_use_double_quant else ""
        kind = quantization.bnb_4bit_quant_type
        return kind, f"4 bits, {kind.upper()}{double}"


def _library_config(quantization: Quantization, dtype: str, structure: Callable[[], Any]) -> BitsAndBytesConfig:
    """The library's configuration; modules that a recipe leaves out are left out besides the head, not instead."""
    settings = quantization.model_dump(exclude={"backend"})
    if left_out := settings.get("llm_int8_skip_modules"):
        model = structure()
        head = model.get_output_embeddings()
        settings["llm_int8_skip_modules"] = [*left_out, *(name for name, each in model.named_modules() if each is head)]
    return BitsAndBytesConfig(**settings, bnb_4bit_compute_dtype=getattr(torch, dtype))


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


BACKEND = _BitsAndBytes()
