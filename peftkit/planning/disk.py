"""How much room a run will take on the disk."""

from __future__ import annotations

from dataclasses import dataclass

from peftkit.recipe.hyperparameters import Training

__all__ = ["DiskNeed", "disk_need"]

_FLOAT = 4
_STATES = {"adafactor": 0, "sgd": 0, "adagrad": 1, "rmsprop": 1, "lion_32bit": 1}
"""Numbers that an optimizer keeps for each trained weight, where these are not AdamW's two."""
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


def disk_need(training: Training, trainable: int, saves: int | None = None) -> DiskNeed:
    """What a run will write: trained weights and optimizer state for each checkpoint, and the weights once more.

    Args:
        training: how often it saves, and with which optimizer.
        trainable: parameters that are trained; they are float32.
        saves: checkpoints that it will write, if that is known.
    """
    eight_bit = "8bit" in training.optim
    states = _STATES.get(training.optim, 2)
    checkpoint = trainable * (_FLOAT + states * (1 if eight_bit else _FLOAT)) + _OTHER_BYTES
    kept = 0
    if training.save_strategy != "no":
        best = bool((training.model_extra or {}).get("load_best_model_at_end"))
        most = None if training.save_total_limit is None else training.save_total_limit + 1 + best
        kept = min((count for count in (most, saves) if count is not None), default=1)
    return DiskNeed(checkpoint, kept, trainable * _FLOAT + _OTHER_BYTES)
