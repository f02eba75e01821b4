"""The loss of a model on prepared batches, weighted by tokens: the same whatever the batch size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

__all__ = ["Loss", "evaluate_loss", "token_losses"]


@dataclass(frozen=True)
class Loss:
    """Negative log-likelihood summed over the tokens that are taught."""

    total: float
    """In nats."""

    tokens: int
    sequences: int

    @property
    def mean(self) -> float:
        """Nats for each token."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """`exp` of the mean, infinite where that is more than a float can hold."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf


def token_losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss in nats of each token of a batch that has a label, [labels], float32.

    The batch holds `input_ids` and `labels` [rows, tokens], the labels not yet shifted, and `position_ids` where
    documents are packed. There is neither mask nor cache, which is what keeps packed documents apart.
    """
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "position_ids") if name in batch}
    targets = batch["labels"].to(model.device)[:, 1:]
    taught = targets != -100
    logits = model(**inputs, use_cache=False).logits[:, :-1][taught]
    return functional.cross_entropy(logits.float(), targets[taught], reduction="none")


@torch.inference_mode()
def evaluate_loss(model: Any, batches: Iterable[dict[str, torch.Tensor]]) -> Loss:
    """Sum the loss over batches, in evaluation mode; the model's own mode is put back."""
    was_training = model.training
    model.eval()
    total, tokens, sequences = 0.0, 0, 0
    try:
        for batch in batches:
            losses = token_losses(model, batch)
            total += float(losses.double().sum())
            tokens += losses.numel()
            sequences += len(batch["input_ids"])
    finally:
        model.train(was_training)
    return Loss(total, tokens, sequences)
