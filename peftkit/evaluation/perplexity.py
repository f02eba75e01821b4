"""Perplexity on prepared data."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from peftkit.data.collator import Collator
from peftkit.data.prepare import Prepared
from peftkit.models.loss import Loss, evaluate_loss

__all__ = ["measure_loss"]


def measure_loss(model: Any, data: Prepared, pad_token_id: int, batch_size: int) -> Loss:
    """The loss over all taught tokens of the data; the batch size changes memory and speed, never the result."""
    dataset: Any = data.dataset
    batches: Any = DataLoader(dataset, batch_size=batch_size, collate_fn=Collator(pad_token_id))
    return evaluate_loss(model, batches)
