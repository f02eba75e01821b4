"""What is known of a batch before a model sees it, so that the model need not look.

Transformers' models look at their inputs for packed documents, and some for padding. On a GPU each look makes the
program wait until all that was asked for has been computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, masking_utils

__all__ = ["known_layout"]

_FINDS_DOCUMENTS = "find_packed_sequence_indices"  # of masking_utils, which calls it by this name
_LOOKS_FOR_PADDING = "warn_if_padding_and_no_attention_mask"


@contextmanager
def known_layout(*, packed: bool) -> Iterator[None]:
    """Let models take it as given within the block whether rows hold several documents, and that padding is meant.

    Masks are those that Transformers makes by itself: none where each row is one document, as `is_causal` then does
    with a faster kernel. A version that does not look is left as it is.
    """
    with ExitStack() as replaced:
        replaced.enter_context(_replaced(masking_utils, _FINDS_DOCUMENTS, _documents if packed else _one_document))
        replaced.enter_context(_replaced(PreTrainedModel, _LOOKS_FOR_PADDING, _no_look))
        yield


@contextmanager
def _replaced(owner: Any, name: str, function: Any) -> Iterator[None]:
    before = getattr(owner, name, None)
    if before is None:
        yield
        return
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _documents(position_ids: torch.Tensor) -> torch.Tensor:
    """Which document of its row each token belongs to, [rows, tokens], counted from 0: positions begin anew in each."""
    return (torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1).cumsum(-1)


def _one_document(position_ids: torch.Tensor) -> None:
    """What Transformers' own function gives where no row holds several."""


def _no_look(self: Any, input_ids: Any, attention_mask: Any) -> None:
    """Rows are padded on the right and their padding has no labels: no mask is missing."""
