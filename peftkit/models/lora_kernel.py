"""The forward and backward pass of a linear layer with a LoRA adapter, in as few operations as it takes.

PEFT computes `W x + scaling * B(A(x))` as a composition of modules: under autocast the input is cast to float32 and
back, the product with B is scaled and added in two further passes over the output, and the input's gradient takes the
same way back. On an H100, with Llama-3.1-8B and 4,096 tokens, moving this data takes about a third of the time of the
matrix products. Here the adapter's products are added by the matrix multiplications themselves, and one copy of the
input is kept for the backward pass. Nothing else differs: adapters are PEFT's, and whatever is not plain LoRA on a
frozen linear layer is left to PEFT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners import lora
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from peftkit.models.dtypes import autocast_dtype
from peftkit.models.linear_cross_entropy import float32_product

__all__ = ["use_lora_kernel"]


def use_lora_kernel(module: nn.Module) -> None:
    """Let a linear layer with a LoRA adapter of PEFT train by this kernel; other modules stay as they are."""
    module.__class__ = _KERNELS.get(type(module), type(module))


class _Kernel:
    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What PEFT's own `forward` gives."""
        if args or kwargs or not _is_plain(self):
            result: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]  # of PEFT's layer
            return result
        return _lora_linear(self, x)


class _LoraLinear(_Kernel, lora.Linear):  # type: ignore[misc]  # PEFT has no types
    pass


class _LoraLinear4bit(_Kernel, lora.Linear4bit):  # type: ignore[misc]
    pass


_KERNELS: Final[dict[Any, Any]] = {lora.Linear: _LoraLinear, lora.Linear4bit: _LoraLinear4bit}


def _is_plain(layer: Any) -> bool:
    """Whether a layer is in training with one adapter that is plain LoRA, on a frozen base that is known."""
    if not (layer.training and torch.is_grad_enabled()) or layer.disable_adapters or layer.merged:
        return False
    if torch.compiler.is_compiling() or len(layer.active_adapters) != 1:
        return False
    (name,) = layer.active_adapters
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_B[name].bias is not None:
        return False
    base = layer.base_layer
    if any(parameter.requires_grad for parameter in base.parameters(recurse=False)):
        return False
    if type(base) is Linear4bit:  # packed anew for a CPU, its weight has another layout
        return not getattr(base.weight.quant_state, "packing_format_for_cpu", False)
    return type(base) in (nn.Linear, Conv1D)


def _lora_linear(layer: Any, x: torch.Tensor) -> torch.Tensor:
    (name,) = layer.active_adapters
    base = layer.base_layer
    down, up, dropout = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.lora_dropout[name]
    is_4bit = type(base) is Linear4bit
    own = base.compute_dtype if is_4bit else None
    dtype = autocast_dtype(x.device.type) or own or x.dtype

    def weight() -> torch.Tensor:
        """The base's weight [out, in], made anew of a quantised one and thus not kept between the passes."""
        held = dequantize_4bit(base.weight.data, base.weight.quant_state) if is_4bit else base.weight
        matrix: torch.Tensor = held.T if type(base) is Conv1D else held
        return matrix.to(dtype)

    kept = x.to(dtype)
    dropped = None if isinstance(dropout, nn.Identity) or dropout.p == 0 else dropout(kept)
    inputs = (kept, dropped, down, up, base.bias, weight, layer.scaling[name])
    result: torch.Tensor = _LoraLinearFunction.apply(*inputs)  # type: ignore[no-untyped-call]
    return result.to(x.dtype) if is_4bit else result


class _LoraLinearFunction(torch.autograd.Function):
    """`x W' + bias + scaling * dropped A' B'`, for x [..., in], W [out, in], A [rank, in] and B [out, rank].

    Autocast has nothing to do in it: all operands are of the dtype that it would give them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        bias: torch.Tensor | None,
        weight: Callable[[], torch.Tensor],
        scaling: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        seen = rows if dropped is None else dropped.reshape(rows.shape)
        down_cast = down.to(x.dtype)
        up_cast = torch.mul(up, scaling, out=torch.empty_like(up, dtype=x.dtype))
        inner, base = seen @ down_cast.T, weight().T
        result = rows @ base if bias is None else torch.addmm(bias.to(x.dtype), rows, base)
        result.addmm_(inner, up_cast.T)
        ctx.save_for_backward(x if dropped is None else dropped, inner, down_cast, up_cast)
        ctx.weight, ctx.scaling, ctx.has_dropout = weight, scaling, dropped is not None
        ctx.dtypes = (down.dtype, up.dtype)
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        seen, inner, down, up = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, gradients[0].shape[-1])
        of_inner = gradient @ up
        of_x = of_dropped = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ ctx.weight()
        if ctx.has_dropout:
            of_dropped = (of_inner @ down).view(seen.shape) if ctx.needs_input_grad[1] else None
        elif of_x is not None:
            of_x.addmm_(of_inner, down)
        of_down = float32_product(of_inner.T, seen.reshape(-1, seen.shape[-1])).to(ctx.dtypes[0])
        of_up = float32_product(gradient.T, inner).mul_(ctx.scaling).to(ctx.dtypes[1])
        of_x = None if of_x is None else of_x.view(seen.shape)
        return of_x, of_dropped, of_down, of_up, None, None, None
