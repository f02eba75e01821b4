"""Attention over packed documents that computes each document alone, with the FlashAttention that torch ships.

`torch.nn.attention.varlen.varlen_attn` takes all tokens of a batch in one row and the bounds of the documents in it
(Dao 2023: FlashAttention-2). There is no mask, nothing is computed between documents, and nothing is installed or
compiled. Registered with Transformers' `AttentionInterface`, but not with its `AttentionMaskInterface`: a model then
builds no mask, and does not wait for the GPU to see whether documents are packed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from peftkit.compatibility import varlen_attention
from peftkit.models.dtypes import autocast_dtype

__all__ = ["BOUNDS", "VARLEN", "Kernel", "bounds_of", "fits_varlen", "flash_kernel", "has_varlen", "register_varlen"]

VARLEN = "peftkit_varlen"
"""The name that Transformers knows this attention by."""

BOUNDS = "cu_seq_lens_q"
"""Transformers' name of the bounds of documents among a model's inputs; models pass it on to their attention."""

_MOST_WIDTH, _WIDTH_MULTIPLE = 256, 8  # of a head: what FlashAttention-2 has kernels for
_HALF = (torch.float16, torch.bfloat16)
_WITHOUT = ("softcap", "s_aux", "position_bias")
"""Options of Transformers' attention functions that change the scores, which the kernel does not know."""


Kernel = Callable[..., torch.Tensor]
"""Causal attention within documents that follow each other in one row; it is called as `flash_kernel` is."""


def has_varlen() -> bool:
    """Whether the installed torch has an operator for variable lengths that takes a scale, a window and dropout."""
    names = {argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments}
    return {"cum_seq_q", "dropout_p", "scale", "window_size_left"} <= names


def fits_varlen(model: Any) -> bool:
    """Whether the kernel computes what a model's attention computes, as far as its configuration says.

    Transformers marks the models whose attention FlashAttention can compute. Attention in chunks exists only as a mask,
    which the kernel does not get; short probes cannot show it.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", 0) // heads if heads else 0)
    return (
        bool(getattr(model, "_supports_flash_attn", False))
        and 0 < width <= _MOST_WIDTH
        and width % _WIDTH_MULTIPLE == 0
        and getattr(config, "attn_logit_softcapping", None) is None
        and getattr(config, "attention_chunk_size", None) is None
    )


def flash_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    *,
    scale: float,
    dropout: float,
    window: int,
) -> torch.Tensor:
    """The `Kernel` of torch, for CUDA from Ampere on and 16-bit values; gives [tokens, heads, width].

    `varlen_attn` has no dropout; the operator that it calls has. It also serves torch before 2.11, whose `varlen_attn`
    takes neither a scale nor a window.

    Args:
        query: [tokens, heads, width].
        key: [tokens, key heads, width]; each key head serves an equal number of query heads.
        value: like `key`.
        bounds: where documents begin, and the number of all tokens, [documents + 1], int32.
        longest: at least the tokens of the longest document.
        scale: what scores are multiplied by.
        dropout: the probability with which a weight is dropped.
        window: how many tokens before its own a query sees; -1 for all.
    """
    inputs = (query, key, value, bounds, bounds, longest, longest)
    public, asks_for_groups = varlen_attention()
    if public is None or dropout:
        operator = torch.ops.aten._flash_attention_forward
        sides = {"window_size_left": window, "window_size_right": 0}
        is_causal = window < 0  # a window is causal by its right side
        attended: torch.Tensor = operator(*inputs, dropout, is_causal, False, scale=scale, **sides)[0]
    else:
        groups = {"enable_gqa": query.shape[1] != key.shape[1]} if asks_for_groups else {}
        attended = public(*inputs, scale=scale, window_size=(window, 0), **groups)
    return attended


def bounds_of(position_ids: torch.Tensor) -> torch.Tensor:
    """Where documents begin, and the number of all tokens, [documents + 1], int32, of positions [rows, tokens].

    A document begins with each row, and where a position does not follow the one before. On a GPU, the program waits
    for this number of documents; `peftkit.data.collator.Collator` finds the bounds beforehand.
    """
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    first = begins.flatten().nonzero().flatten()
    return torch.cat([first, first.new_tensor([position_ids.numel()])]).int()


def register_varlen(kernel: Kernel = flash_kernel, dtypes: tuple[torch.dtype, ...] = _HALF) -> None:
    """Make `VARLEN` a name of Transformers' for attention by a kernel that takes values of these dtypes."""
    AttentionInterface.register(VARLEN, partial(_attention, kernel=kernel, dtypes=dtypes))


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    kernel: Kernel,
    dtypes: tuple[torch.dtype, ...],
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as Transformers calls it: `query`, `key` and `value` are [rows, heads, tokens, width].

    The rows follow each other in one, where each begins a document. Values of a dtype that the kernel does not take, as
    those of a float32 base which is evaluated without autocast, are left to sdpa with a mask of the same documents.

    Raises:
        ValueError: the model wants what the kernel cannot compute.
    """
    _check(module, query, key, attention_mask, options)
    rows, _, tokens, width = query.shape
    bounds = options.get(BOUNDS)
    if bounds is None:
        bounds = bounds_of(options["position_ids"].expand(rows, -1))
    window = (options.get("sliding_window") or 0) - 1  # one token of a window is the query's own
    dtype = autocast_dtype(query.device.type) or query.dtype
    if dtype not in dtypes:
        mask = _mask(bounds, rows, tokens, window)
        attended, _ = sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling)
        return attended, None
    query, key, value = (_in_one_row(values, dtype) for values in (query, key, value))
    scale = width**-0.5 if scaling is None else scaling
    attended = kernel(query, key, value, bounds, tokens, scale=scale, dropout=dropout, window=window)
    return attended.view(rows, tokens, -1, width), None


def _in_one_row(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[rows, heads, tokens, width] as [rows * tokens, heads, width]."""
    return values.transpose(1, 2).flatten(0, 1).to(dtype)


def _check(
    module: Any, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, options: dict[str, Any]
) -> None:
    wanted = [name for name in _WITHOUT if options.get(name) is not None]
    if wanted:
        raise ValueError(f"attention over variable lengths has no {wanted[0]}")
    is_causal = options.get("is_causal")
    if mask is not None or not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise ValueError("attention over variable lengths is causal within documents, and has no other mask")
    if key.shape[2] != query.shape[2]:
        raise ValueError("attention over variable lengths has no cache")
    positions = options.get("position_ids")
    if options.get(BOUNDS) is None and (positions is None or positions.dim() != 2):
        raise ValueError("the model does not tell its attention where documents begin")


def _mask(bounds: torch.Tensor, rows: int, tokens: int, window: int) -> torch.Tensor:
    """The keys that a query sees, in booleans [rows, 1, tokens, tokens]."""
    places = torch.arange(tokens, device=bounds.device)
    documents = torch.searchsorted(bounds, torch.arange(rows * tokens, device=bounds.device), right=True)
    documents = documents.view(rows, 1, tokens)
    back = places[:, None] - places[None, :]
    seen = (back >= 0) if window < 0 else (back >= 0) & (back <= window)
    return (documents[..., :, None] == documents[..., None, :]) & seen


register_varlen()
