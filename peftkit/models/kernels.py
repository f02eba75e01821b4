"""Faster ways to compute exactly what a model computes while it trains.

Measured on two cores with GPT-2 (124 million weights), these take more time than they need and most of the memory:

- `gelu_new` is written in eight operations, most of which leave a tensor behind; torch has the same as one kernel, on a
  GPU too, where these tensors are more than half of what GPT-2 keeps in half precision.
- dropout draws a float for each number, on one core, and keeps it: five of six parts of its time are the drawing. A
  64-bit draw decides about four numbers, and a byte of each is kept.
- a linear layer with a LoRA adapter moves its input and output more often than it multiplies them: see `lora_kernel`.
- Llama's RMSNorm is written in six operations; on a GPU torch has it as one kernel.
- attention with dropout has no fused kernel on a CPU: six squares of the sequence's length are kept for each head and
  layer. Here they are computed again in the backward pass, a few at a time; what dropout kept is all that stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from peftkit.models.attach import inner_model
from peftkit.models.dtypes import without_autocast
from peftkit.models.lora_kernel import use_lora_kernel
from peftkit.planning.hardware import Hardware

__all__ = ["Dropout", "RMSNorm", "dropout_attention", "is_rms_norm", "keep_mask", "use_fast_kernels"]

_NAME = "peftkit_cpu"
_PER_DRAW = 4  # sixteen bits each: a probability is rounded to 1/65536
_LANES = 1 << 16
_QUERIES_AT_ONCE = 256
_SCORES_AT_ONCE = 1 << 22  # sixteen megabytes each time

Tile = tuple[slice, slice, slice]


def use_fast_kernels(model: Any, hardware: Hardware) -> None:
    """Change a model in place so that training it takes less time and memory; what it computes stays the same.

    Nothing that is saved changes: neither weights nor configuration.
    """
    inner = inner_model(model)
    on_cpu = hardware.device == "cpu"  # a GPU has fused kernels for dropout and attention
    for parent in list(model.modules()):
        use_lora_kernel(parent)
        for name, module in list(parent.named_children()):
            if type(module) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))
            elif on_cpu and type(module) is nn.Dropout:
                setattr(parent, name, Dropout(module.p).train(module.training))
            elif hardware.device == "cuda" and is_rms_norm(type(module)):
                setattr(parent, name, RMSNorm(module))
    if on_cpu and inner.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        inner.set_attn_implementation(_NAME)


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


def keep_mask(shape: Sequence[int], probability: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """Booleans of which each is False with a probability, rounded to 1/65536; drawn from torch's own generator."""
    count = 1
    for length in shape:
        count *= length
    draws = torch.empty(-(-count // _PER_DRAW), dtype=torch.int64, device=device).random_(-(2**63), None)
    return (draws.view(torch.int16)[:count] >= _dropped_lanes(probability) - _LANES // 2).view(*shape)


class Dropout(nn.Dropout):
    """Dropout that keeps a byte for each number instead of a float."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  the name that torch gives it
        """`input` with some numbers set to zero and the others made larger, while training."""
        if not self.training or self.p == 0:
            return input
        keep = keep_mask(input.shape, self.p, input.device)
        dropped: torch.Tensor = _Dropout.apply(input, keep, _scale(self.p))  # type: ignore[no-untyped-call]
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


def dropout_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Causal attention with dropout of its weights, as `scaled_dot_product_attention` has it.

    `query`, `key`, `value` and the result are [rows, heads, tokens, width]. `mask` says which keys a query sees, in
    booleans [rows or 1, 1, tokens, tokens]; without it, all up to its own. Scores are multiplied with `scaling`, and
    each weight is dropped with the probability `dropout`.
    """
    inputs = (query, key, value, mask, scaling, dropout)
    attended: torch.Tensor = _DropoutAttention.apply(*inputs)  # type: ignore[no-untyped-call]
    return attended


class _DropoutAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        dropout: float,
    ) -> torch.Tensor:
        ctx.scaling, ctx.scale, ctx.mask = scaling, _scale(dropout), mask
        keeps = []
        result = torch.empty_like(query)
        for rows, queries, keys in _tiles(query):
            weights = _weights(query[rows, :, queries], key[rows, :, keys], mask, (rows, queries, keys), scaling)
            keep = keep_mask(weights.shape, dropout)
            keeps.append(keep)
            result[rows, :, queries] = weights.mul_(keep) @ value[rows, :, keys]
        ctx.save_for_backward(query, key, value, *keeps)
        return result.mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *keeps = ctx.saved_tensors
        found = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for tile, keep in zip(_tiles(query), keeps, strict=True):
            rows, queries, keys = tile
            asked, seen = query[rows, :, queries], key[rows, :, keys]
            weights = _weights(asked, seen, ctx.mask, tile, ctx.scaling)
            gradient = gradients[0][rows, :, queries] * ctx.scale
            found[2][rows, :, keys] += (weights * keep).transpose(-1, -2) @ gradient
            wanted = (gradient @ value[rows, :, keys].transpose(-1, -2)).mul_(keep)
            # the gradient of a softmax: w * (g - sum(g * w)) over the keys
            wanted = wanted.sub_((wanted * weights).sum(-1, keepdim=True)).mul_(weights).mul_(ctx.scaling)
            found[0][rows, :, queries] = wanted @ seen
            found[1][rows, :, keys] += wanted.transpose(-1, -2) @ asked
        return (*found, None, None, None)


def _tiles(query: torch.Tensor) -> Iterator[Tile]:
    """Rows, queries and the keys that these may see, so many at a time that their scores are no burden."""
    rows, heads, tokens, _ = query.shape
    for start in range(0, tokens, _QUERIES_AT_ONCE):
        stop = min(start + _QUERIES_AT_ONCE, tokens)
        together = max(1, _SCORES_AT_ONCE // (heads * (stop - start) * stop))
        for first in range(0, rows, together):
            yield slice(first, min(first + together, rows)), slice(start, stop), slice(0, stop)


def _weights(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, tile: Tile, scaling: float
) -> torch.Tensor:
    """The softmax of a tile's scores."""
    rows, queries, keys = tile
    scores = (query @ key.transpose(-1, -2)).mul_(scaling)
    if mask is None:
        places = torch.arange(keys.stop, device=query.device)
        hidden = places[None, :] > places[queries.start : queries.stop, None]
    else:
        hidden = ~mask[rows if mask.shape[0] > 1 else slice(None), :, queries, keys]
    return scores.masked_fill_(hidden, torch.finfo(scores.dtype).min).softmax(-1)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention on torch's kernels, but for training with dropout."""
    own = (
        dropout > 0
        and query.dtype == torch.float32
        and query.shape == key.shape == value.shape
        and (attention_mask is None or attention_mask.dtype == torch.bool)
        and options.get("position_bias") is None
    )
    if not own:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return result
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended = dropout_attention(query, key, value, attention_mask, scaling=scaling, dropout=dropout)
    return attended.transpose(1, 2).contiguous(), None


def _dropped_lanes(probability: float) -> int:
    return round(probability * _LANES)


def _scale(probability: float) -> float:
    """What the numbers that stay are multiplied with, so that their mean stays."""
    return _LANES / (_LANES - _dropped_lanes(probability))
