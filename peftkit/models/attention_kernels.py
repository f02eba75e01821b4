"""Attention functions that Transformers' models are set to by name, each registered with its `AttentionInterface`.

- `VARLEN` computes each packed document alone, with the FlashAttention that torch ships (Dao 2023: FlashAttention-2):
  `torch.nn.attention.varlen.varlen_attn` takes all tokens of a batch in one row and the bounds of the documents in it.
  There is no mask, nothing is computed between documents, and nothing is installed or compiled. It is not registered
  with `AttentionMaskInterface`: a model then builds no mask, and does not wait for the GPU to see whether documents are
  packed.
- `SHARED_MASK` is sdpa with one mask for all layers. Packed documents need a mask [rows, 1, tokens, tokens], which
  Transformers makes once, in booleans; on a GPU `scaled_dot_product_attention` then makes of it a bias in the dtype of
  the queries, in each layer anew, and each layer keeps its own for the backward pass: 4.3 GB for 32 layers and 4 rows
  of 4,096 tokens. Here that bias is made once.
- `CPU_DROPOUT` is for training with dropout on a CPU, which has no fused kernel for it: six squares of the sequence's
  length would be kept for each head and layer. Here they are computed again in the backward pass, a few at a time; what
  dropout kept is all that stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from peftkit.compatibility import varlen_attention
from peftkit.models.dtypes import autocast_dtype

__all__ = [
    "BOUNDS", "CPU_DROPOUT", "SHARED_MASK", "VARLEN", "Kernel", "bounds_of", "dropout_attention", "dropout_scale",
    "fits_varlen", "flash_kernel", "has_varlen", "keep_mask", "register_varlen",
]  # fmt: skip

VARLEN, SHARED_MASK, CPU_DROPOUT = "peftkit_varlen", "peftkit_sdpa", "peftkit_cpu"

BOUNDS = "cu_seq_lens_q"
"""Transformers' name of the bounds of documents among a model's inputs; models pass it on to their attention."""

_MOST_WIDTH, _WIDTH_MULTIPLE = 256, 8  # of a head: what FlashAttention-2 has kernels for
_HALF = (torch.float16, torch.bfloat16)
_WITHOUT = ("softcap", "s_aux", "position_bias")
"""Options of Transformers' attention functions that change the scores, which the kernel does not know."""

_ALIGNMENT = 8
"""Rows of the bias begin at multiples of so many values, as the memory-efficient kernel needs: torch copies a bias that
is not aligned, in each layer (`preprocess_mask` in its attention.cpp)."""

_PER_DRAW = 4  # sixteen bits each: a probability is rounded to 1/65536
_LANES = 1 << 16
_QUERIES_AT_ONCE = 256
_SCORES_AT_ONCE = 1 << 22  # sixteen megabytes each time

Kernel = Callable[..., torch.Tensor]
"""Causal attention within documents that follow each other in one row; it is called as `flash_kernel` is."""

Tile = tuple[slice, slice, slice]


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
    others = ("attn_logit_softcapping", "attention_chunk_size")
    return (
        bool(getattr(model, "_supports_flash_attn", False))
        and 0 < width <= _MOST_WIDTH
        and width % _WIDTH_MULTIPLE == 0
        and all(getattr(config, name, None) is None for name in others)
    )


def flash_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int,
    *, scale: float, dropout: float, window: int,
) -> torch.Tensor:  # fmt: skip
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
    AttentionInterface.register(VARLEN, partial(_varlen, kernel=kernel, dtypes=dtypes))


def _varlen(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    dropout: float = 0.0, scaling: float | None = None,
    *, kernel: Kernel, dtypes: tuple[torch.dtype, ...], **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention as Transformers calls it: `query`, `key` and `value` are [rows, heads, tokens, width].

    The rows follow each other in one, where each begins a document. Values of a dtype that the kernel does not take, as
    those of a float32 base which is evaluated without autocast, are left to sdpa with a mask of the same documents.

    Raises:
        ValueError: the model wants what the kernel cannot compute.
    """
    _check_varlen(module, query, key, attention_mask, options)
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
    # [rows, heads, tokens, width] as [rows * tokens, heads, width]
    query, key, value = (values.transpose(1, 2).flatten(0, 1).to(dtype) for values in (query, key, value))
    scale = width**-0.5 if scaling is None else scaling
    attended = kernel(query, key, value, bounds, tokens, scale=scale, dropout=dropout, window=window)
    return attended.view(rows, tokens, -1, width), None


def _check_varlen(
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


def _shared_bias(*, dtype: torch.dtype, **options: Any) -> torch.Tensor | None:
    """What is added to the scores, [rows, 1, tokens, keys]: 0 where a query sees a key and -inf elsewhere.

    `dtype` is that of the embeddings; autocast computes the scores in its own. None where no mask is needed.
    """
    seen = sdpa_mask(**options)
    if seen is None:
        return None
    dtype = autocast_dtype(seen.device.type) or dtype
    *shape, keys = seen.shape
    bias = torch.zeros(*shape, keys + -keys % _ALIGNMENT, dtype=dtype, device=seen.device)[..., :keys]
    return bias.masked_fill_(~seen, -math.inf)


def keep_mask(shape: Sequence[int], probability: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """Booleans of which each is False with a probability, rounded to 1/65536; drawn from torch's own generator."""
    count = math.prod(shape)
    draws = torch.empty(-(-count // _PER_DRAW), dtype=torch.int64, device=device).random_(-(2**63), None)
    return (draws.view(torch.int16)[:count] >= round(probability * _LANES) - _LANES // 2).view(*shape)


def dropout_scale(probability: float) -> float:
    """What the numbers that `keep_mask` keeps are multiplied with, so that their mean stays."""
    return _LANES / (_LANES - round(probability * _LANES))


def dropout_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
    *, scaling: float, dropout: float,
) -> torch.Tensor:  # fmt: skip
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
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
        scaling: float, dropout: float,
    ) -> torch.Tensor:  # fmt: skip
        ctx.scaling, ctx.scale, ctx.mask = scaling, dropout_scale(dropout), mask
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


def _cpu_dropout(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
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


register_varlen()
AttentionInterface.register(SHARED_MASK, sdpa_attention_forward)
AttentionMaskInterface.register(SHARED_MASK, _shared_bias)
AttentionInterface.register(CPU_DROPOUT, _cpu_dropout)
AttentionMaskInterface.register(CPU_DROPOUT, sdpa_mask)
