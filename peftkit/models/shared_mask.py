"""torch's own attention with a mask that all layers share.

Packed documents need a mask [rows, 1, tokens, tokens]. Transformers makes it once for all layers, in booleans; on a GPU
`scaled_dot_product_attention` then makes of it a bias in the dtype of the queries, in each layer anew, and each layer
keeps its own for the backward pass: 4.3 GB for 32 layers and 4 rows of 4,096 tokens. Here that bias is made once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

__all__ = ["SHARED_MASK"]

SHARED_MASK = "peftkit_sdpa"
"""The name that Transformers knows this attention by."""

_ALIGNMENT = 8
"""Rows of the bias begin at multiples of so many values, as the memory-efficient kernel needs: torch copies a bias that
is not aligned, in each layer (`preprocess_mask` in its attention.cpp)."""


def _bias(*, dtype: torch.dtype, **options: Any) -> torch.Tensor | None:
    """What is added to the scores, [rows, 1, tokens, keys]: 0 where a query sees a key and -inf elsewhere.

    `dtype` is that of the embeddings; autocast computes the scores in its own. None where no mask is needed.
    """
    seen = sdpa_mask(**options)
    if seen is None:
        return None
    kind = seen.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
    *shape, keys = seen.shape
    bias = torch.zeros(*shape, keys + -keys % _ALIGNMENT, dtype=dtype, device=seen.device)[..., :keys]
    return bias.masked_fill_(~seen, -math.inf)


AttentionInterface.register(SHARED_MASK, sdpa_attention_forward)
AttentionMaskInterface.register(SHARED_MASK, _bias)
