"""How much room a run will take on the disk."""

from __future__ import annotations

import math
from dataclasses import dataclass

from peftkit.recipe.hyperparameters import Training

__all__ = ["DiskNeed", "disk_need", "optimizer_bytes"]

_FLOAT = 4
_STATES = {"adafactor": 0, "sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "ademamix": 3}
"""Numbers that an optimizer keeps for each trained weight, by how its name begins, where these are not AdamW's two."""
_SAVE_STEPS = 500  # of TrainingArguments
_OTHER_BYTES = 4_000_000  # tokenizer, configuration, card, metrics


@dataclass(frozen=True)
class DiskNeed:
    """Bytes of what a run writes."""

    checkpoint_bytes: int
    checkpoints: int
    """That are there at once, at the most: a new one is whole before an old one goes."""

    output_bytes: int

    @property
    def total(self) -> int:
        """All of it together."""
        return self.checkpoint_bytes * self.checkpoints + self.output_bytes


def disk_need(training: Training, trainable: int, sequences: int | None, embeddings: int = 0) -> DiskNeed:
    """What a run will write: trained weights and optimizer state for each checkpoint, and the weights once more.

    Args:
        training: how often it saves, and with which optimizer.
        trainable: parameters that are trained; they are float32.
        sequences: of the training data; None for a stream, whose run is one epoch.
        embeddings: of the trained parameters, those of embeddings, whose state stays float32 with 8-bit optimizers.
    """
    state_bytes = optimizer_bytes(training.optim, trainable, embeddings)
    checkpoint = _FLOAT * trainable + state_bytes + _OTHER_BYTES
    kept = _saves(training, sequences)
    if training.save_total_limit is not None:
        best = bool((training.model_extra or {}).get("load_best_model_at_end"))
        kept = min(kept, training.save_total_limit + 1 + best)
    return DiskNeed(checkpoint, kept, trainable * _FLOAT + _OTHER_BYTES)


def optimizer_bytes(optim: str, trainable: int, embeddings: int = 0) -> int:
    """What an optimizer keeps for the trained weights; of these, `embeddings` stay float32 with 8-bit ones."""
    name = optim.removeprefix("paged_")
    states = next((count for start, count in _STATES.items() if name.startswith(start)), 2)
    eight_bit = trainable - embeddings if "8bit" in name else 0
    return states * (_FLOAT * (trainable - eight_bit) + eight_bit)


def _saves(training: Training, sequences: int | None) -> int:
    """Checkpoints that a run writes in its whole length."""
    if training.save_strategy == "no":
        return 0
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    per_epoch = None if sequences is None else math.ceil(sequences / batch)
    steps = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * (per_epoch or 1))
    if training.save_strategy == "epoch":
        return math.ceil(steps / (per_epoch or steps))
    every = float((training.model_extra or {}).get("save_steps", _SAVE_STEPS))  # below 1, a share of all steps
    return math.ceil(steps / (every if every >= 1 else math.ceil(steps * every)))
