"""Faster ways to compute exactly what a model computes while it trains.

Measured on two cores with GPT-2 (124 million weights), these take more time than they need and most of the memory:

- `gelu_new` is written in eight operations, most of which leave a tensor behind; torch has the same as one kernel, on a
  GPU too, where these tensors are more than half of what GPT-2 keeps in half precision.
- dropout draws a float for each number, on one core, and keeps it: five of six parts of its time are the drawing. A
  64-bit draw decides about four numbers, and a byte of each is kept.
- attention with dropout, on a CPU: see `peftkit.models.attention_kernels`.
- Llama's RMSNorm is written in six operations; on a GPU torch has it as one kernel.
- PEFT computes a linear layer with LoRA, `W x + scaling * B(A(x))`, as a composition of modules: under autocast the
  input is cast to float32 and back, the product with B is scaled and added in two further passes over the output, and
  the input's gradient takes the same way back. On an H100, with Llama-3.1-8B and 4,096 tokens, moving this data takes
  about a third of the time of the matmuls. Here these add the adapter's products themselves, and one copy of the input
  is kept for the backward pass. Adapters are PEFT's, and whatever is not plain LoRA on a frozen linear layer is left to
  PEFT.
- where single rows of an embedding are trained, PEFT copies the whole matrix in every pass, and its gradient is as
  large. Here the rows alone are looked up, or multiplied with, in the place of the frozen ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from peftkit.models.attach import inner_model
from peftkit.models.attention_kernels import CPU_DROPOUT, dropout_scale, keep_mask
from peftkit.models.dtypes import autocast_dtype, without_autocast
from peftkit.models.linear_cross_entropy import float32_product
from peftkit.models.quantization import quantised_modules
from peftkit.planning.hardware import Hardware

__all__ = ["Dropout", "RMSNorm", "is_rms_norm", "use_fast_kernels", "use_lora_kernels", "use_row_kernels"]


def use_fast_kernels(model: Any, hardware: Hardware) -> None:
    """Change a model in place so that training it takes less time and memory; what it computes stays the same.

    Nothing that is saved changes: neither weights nor configuration.
    """
    on_cpu = hardware.device == "cpu"  # a GPU has fused kernels for dropout and attention
    use_lora_kernels(model)
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))
            elif on_cpu and type(module) is nn.Dropout:
                setattr(parent, name, Dropout(module.p).train(module.training))
            elif hardware.device == "cuda" and is_rms_norm(type(module)):
                setattr(parent, name, RMSNorm(module))
    inner = inner_model(model)
    if on_cpu and inner.config._attn_implementation == "sdpa":
        inner.set_attn_implementation(CPU_DROPOUT)


def use_lora_kernels(model: Any) -> None:
    """Let the linear layers of a model that have a LoRA adapter of PEFT's train by the kernel here."""
    backends = quantised_modules(model)
    for module in list(model.modules()):
        backend = backends.get(getattr(module, "base_layer", None))
        kind: Any = type(module)
        if kind is lora.Linear or (backend and kind is backend.lora_layer()):
            module.__class__, module.backend = _kernel_of(kind), backend


def use_row_kernels(model: Any) -> None:
    """Let the rows that PEFT trains of embeddings and heads be computed with alone, by the kernel here."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = _TokenRows


def is_rms_norm(kind: Any) -> bool:
    """Whether modules of a class compute what Llama's RMSNorm does, judged by what a small one computes."""
    if not kind.__name__.endswith("RMSNorm"):
        return False
    values = torch.linspace(-2, 3, 8).view(2, 4)
    try:
        module: Any = kind(4)
        with torch.no_grad():
            module.weight.copy_(torch.tensor([0.5, 1.0, 2.0, -1.0]))
            return [name for name, _ in module.named_parameters()] == ["weight"] and torch.allclose(
                module(values), RMSNorm(module)(values), rtol=1e-6, atol=0
            )
    except (TypeError, AttributeError):
        return False


class RMSNorm(nn.Module):
    """Llama's RMSNorm in one kernel, whose result is rounded once."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = stock.weight, stock.variance_epsilon

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`hidden_states` [..., width] divided by their root mean square, times the weight."""
        with without_autocast(hidden_states.device.type):
            kind = torch.promote_types(hidden_states.dtype, self.weight.dtype)
            weight = self.weight.to(kind)
            return functional.rms_norm(hidden_states.to(kind), weight.shape, weight, self.variance_epsilon)


class Dropout(nn.Dropout):
    """Dropout that keeps a byte for each number instead of a float."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  the name that torch gives it
        """`input` with some numbers set to zero and the others made larger, while training."""
        if not self.training or self.p == 0:
            return input
        keep = keep_mask(input.shape, self.p, input.device)
        dropped: torch.Tensor = _Dropout.apply(input, keep, dropout_scale(self.p))  # type: ignore[no-untyped-call]
        return dropped


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, keep: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (values * keep).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return (gradients[0] * keep).mul_(ctx.scale), None, None


class _TokenRows(TrainableTokensLayer):  # type: ignore[misc]
    """PEFT's layer with the frozen matrix left as it is, and the trained rows in place of some of it."""

    def forward_adapters(self, x: torch.Tensor, active_adapters: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Embeddings [..., width] of ids, or logits [..., vocabulary] of hidden states."""
        base = self.base_layer
        if self.disable_adapters or self.merged or len(active_adapters) != 1:
            result: torch.Tensor = super().forward_adapters(x, active_adapters, *args, **kwargs)
            return result
        (name,) = active_adapters
        ids, found, order = self._places(name, x.device)
        rows, computed = self.trainable_tokens_delta[name].to(base.weight.dtype), base(x, *args, **kwargs)
        if not isinstance(base, nn.Embedding):
            made: torch.Tensor = functional.linear(x, rows.to(computed.dtype))
            return torch.index_copy(computed, -1, ids, made.to(computed.dtype))
        scale = self._get_embed_scale()
        rows = rows if scale is None else rows * scale.to(rows.dtype)
        place = torch.searchsorted(found, x).clamp_(max=len(found) - 1)
        chosen = functional.embedding(order[place], rows).to(computed.dtype)
        return torch.where((found[place] == x)[..., None], chosen, computed)

    def _places(self, name: str, device: torch.device) -> tuple[torch.Tensor, ...]:
        """The ids of the rows, the same in order, and where each of these is; made once, as a copy waits for a GPU."""
        kept = self.__dict__.setdefault("places", {})
        if (name, device) not in kept:
            with torch.inference_mode(False):  # they are used in training too
                ids = torch.tensor(self.token_indices[name], device=device)
                kept[name, device] = (ids, *ids.sort())
        places: tuple[torch.Tensor, ...] = kept[name, device]
        return places


@cache
def _kernel_of(kind: Any) -> Any:
    """A class of PEFT's LoRA layers with the kernel in it."""
    return type(f"Fast{kind.__name__}", (_LoraKernel, kind), {"__module__": __name__})


class _LoraKernel:
    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What PEFT's own `forward` gives."""
        weight = None if args or kwargs or not _is_plain(self) else _weight_of(self)
        if weight is None:
            result: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]  # of PEFT's layer
            return result
        return _lora_linear(self, weight, x)


def _is_plain(layer: Any) -> bool:
    """Whether a layer is in training with one adapter that is plain LoRA, on a frozen base."""
    if not (layer.training and torch.is_grad_enabled()) or layer.disable_adapters or layer.merged:
        return False
    if torch.compiler.is_compiling() or len(layer.active_adapters) != 1:
        return False
    (name,) = layer.active_adapters
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_B[name].bias is not None:
        return False
    return not any(parameter.requires_grad for parameter in layer.base_layer.parameters(recurse=False))


def _weight_of(layer: Any) -> Callable[[], torch.Tensor] | None:
    """Gives the base's weight [out, in], made anew of a quantised one; None where PEFT must compute with it."""
    base = layer.base_layer
    if layer.backend is not None:
        weight: Callable[[], torch.Tensor] | None = layer.backend.dense(base)
        return weight
    if type(base) is Conv1D:
        return lambda: base.weight.T
    return (lambda: base.weight) if type(base) is nn.Linear else None


def _lora_linear(layer: Any, weight: Callable[[], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    (name,) = layer.active_adapters
    base, dropout = layer.base_layer, layer.lora_dropout[name]
    kept = x.to(autocast_dtype(x.device.type) or getattr(base, "compute_dtype", None) or x.dtype)
    dropped = None if isinstance(dropout, nn.Identity) or dropout.p == 0 else dropout(kept)
    matrices = layer.lora_A[name].weight, layer.lora_B[name].weight
    inputs = (kept, dropped, *matrices, base.bias, weight, layer.scaling[name])
    rows: torch.Tensor = _LoraLinearFunction.apply(*inputs)  # type: ignore[no-untyped-call]
    result = rows.view(*x.shape[:-1], -1)  # here, as a view that a function of its own returns cannot be changed
    return result if layer.backend is None else result.to(x.dtype)


class _LoraLinearFunction(torch.autograd.Function):
    """`x W' + bias + scaling * dropped A' B'`, [rows, out], for x [..., in], W [out, in], A [rank, in], B [out, rank].

    Autocast has nothing to do in it: all operands are of the dtype that it would give them.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dropped: torch.Tensor | None, down: torch.Tensor, up: torch.Tensor,
        bias: torch.Tensor | None, weight: Callable[[], torch.Tensor], scaling: float,
    ) -> torch.Tensor:  # fmt: skip
        rows = x.reshape(-1, x.shape[-1])
        seen = rows if dropped is None else dropped.reshape(rows.shape)
        down_cast = down.to(x.dtype)
        up_cast = torch.mul(up, scaling, out=torch.empty_like(up, dtype=x.dtype))
        inner, base = seen @ down_cast.T, weight().to(x.dtype).T
        result = rows @ base if bias is None else torch.addmm(bias.to(x.dtype), rows, base)
        result.addmm_(inner, up_cast.T)
        ctx.save_for_backward(x if dropped is None else dropped, inner, down_cast, up_cast)
        ctx.weight, ctx.scaling, ctx.has_dropout = weight, scaling, dropped is not None
        ctx.dtypes = (down.dtype, up.dtype)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        seen, inner, down, up = ctx.saved_tensors
        gradient = gradients[0]
        of_inner = gradient @ up
        of_x = gradient @ ctx.weight().to(gradient.dtype) if ctx.needs_input_grad[0] else None
        of_dropped = None
        if ctx.has_dropout:
            of_dropped = (of_inner @ down).view(seen.shape) if ctx.needs_input_grad[1] else None
        elif of_x is not None:
            of_x.addmm_(of_inner, down)
        of_down = float32_product(of_inner.T, seen.reshape(-1, seen.shape[-1])).to(ctx.dtypes[0])
        of_up = float32_product(gradient.T, inner).mul_(ctx.scaling).to(ctx.dtypes[1])
        of_x = None if of_x is None else of_x.view(seen.shape)
        return of_x, of_dropped, of_down, of_up, None, None, None
