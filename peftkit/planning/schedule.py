"""How many steps a run takes, and how often something happens on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from peftkit.recipe.hyperparameters import Training

__all__ = ["Schedule"]

_SAVE_STEPS = 500  # of TrainingArguments


@dataclass(frozen=True)
class Schedule:
    """The steps of a run with data of a known length, or of a stream."""

    training: Training
    sequences: int | None
    """Of an epoch; None for a stream, whose run is one epoch."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.steps if self.sequences is None else math.ceil(self.sequences / self.training.effective_batch)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        if self.training.max_steps > 0:
            return self.training.max_steps
        of_an_epoch = math.ceil((self.sequences or 1) / self.training.effective_batch)
        return math.ceil(self.training.num_train_epochs * of_an_epoch)

    @property
    def epochs(self) -> float:
        """Times that the data is seen."""
        return self.steps / self.steps_per_epoch

    @property
    def saves(self) -> int:
        """Checkpoints that are written, the one after the last step included."""
        return math.ceil(self._times(self.training.save_strategy, "save_steps", _SAVE_STEPS))

    @property
    def evaluations(self) -> int:
        """Evaluations while it trains, without those before the first step and after the last."""
        return math.floor(self._times(self.training.eval_strategy, "eval_steps", self.training.logging_steps))

    def _times(self, strategy: str, field: str, default: float) -> float:
        if strategy == "no":
            return 0
        if strategy == "epoch":
            return math.ceil(self.epochs)
        every = float((self.training.model_extra or {}).get(field) or default)  # below 1, a share of all steps
        return self.steps / (every if every >= 1 else math.ceil(self.steps * every))
