"""torchao: weights in 8 bits with a scale for each output, computed in the dtype of the inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from peftkit.models.base import LocatedBase
from peftkit.models.quantization import Backend
from peftkit.recipe.hyperparameters import Quantization

__all__ = ["BACKEND"]


class _TorchAo(Backend):
    advice = "Only quantization.backend: torchao needs it."

    def library(self) -> str:
        """Its version."""
        return f"torchao {version('torchao')}"

    def load(
        self, base: LocatedBase, config: PreTrainedConfig, quantization: Quantization, dtype: str, device: str
    ) -> Any:
        """Transformers quantises Linear layers while it reads the weights; GPT-2's Conv1D layers follow here."""
        del quantization
        model = base.load(config, dtype, quantization_config=_library_config(), device_map={"": device})
        for name, layer in _layers(model, model.hf_quantizer).items():
            if isinstance(layer, Conv1D):
                parent, _, own = name.rpartition(".")
                setattr(model.get_submodule(parent), own, _quantised(layer.weight.data.T, layer.bias))
        return model

    def modules(self, model: Any) -> dict[str, Any]:
        from torchao.utils import TorchAOBaseTensor

        linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
        return {name: module for name, module in linear if isinstance(module.weight, TorchAOBaseTensor)}

    def prepared(self, structure: Any, quantization: Quantization, dtype: str) -> dict[str, Any]:
        del quantization
        from transformers.quantizers.auto import AutoHfQuantizer

        quantizer = AutoHfQuantizer.from_config(_library_config(), pre_quantized=False)
        quantizer.preprocess_model(structure, dtype=getattr(torch, dtype), device_map={"": "cpu"})
        return _layers(structure, quantizer)

    @torch.no_grad()
    def rounded(self, module: Any, weight: torch.Tensor) -> torch.Tensor:
        del module
        return _numbers(_quantised(weight, None))

    def bytes_of_a_weight(self, quantization: Quantization) -> float:
        del quantization
        return 1.0

    def tolerance(self, quantization: Quantization) -> float:
        del quantization
        return 0.0  # nothing but weights is rounded

    @contextmanager
    def exact(self, module: Any) -> Iterator[None]:
        module.forward = partial(_forward, module)
        try:
            yield
        finally:
            del module.forward

    def describe(self, quantization: Quantization) -> tuple[str, str]:
        del quantization
        return "torchao int8", "8 bits, torchao's int8 weights"


def _library_config() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(version=2))


def _layers(model: Any, quantizer: Any) -> dict[str, Any]:
    """The linear layers of a model, by name, but for those that a quantizer of Transformers leaves as they are."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = quantizer.modules_to_not_convert
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return {name: module for name, module in linear if should_convert_module(name, kept)}


def _quantised(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A layer with a weight [out features, in features] that is quantised."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    layer.bias = bias  # type: ignore[assignment]  # a parameter, which it is
    quantize_(layer, Int8WeightOnlyConfig(version=2))
    return layer


def _numbers(layer: Any) -> torch.Tensor:
    """What a quantised layer's weight means: float32, [out features, in features]."""
    numbers: torch.Tensor = layer.weight.dequantize(torch.float32)
    return numbers


def _forward(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    bias = layer.bias if layer.bias is None else layer.bias.float()
    return functional.linear(hidden.float(), _numbers(layer), bias)


BACKEND = _TorchAo()
