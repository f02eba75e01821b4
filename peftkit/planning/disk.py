"""How much room a run will take on the disk."""

from __future__ import annotations

from dataclasses import dataclass

from peftkit.planning.optimizers import optimizer_bytes
from peftkit.planning.schedule import Schedule
from peftkit.recipe.hyperparameters import Training

__all__ = ["DiskNeed", "disk_need"]

_FLOAT = 4
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
    kept = Schedule(training, sequences).saves
    if training.save_total_limit is not None:
        best = bool((training.model_extra or {}).get("load_best_model_at_end"))
        kept = min(kept, training.save_total_limit + 1 + best)
    return DiskNeed(checkpoint, kept, trainable * _FLOAT + _OTHER_BYTES)
