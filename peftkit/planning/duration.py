"""How long a run takes: its steps, and the time of each from measurements or from the speed of the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

from peftkit.planning.hardware import Hardware
from peftkit.planning.precision import ChosenPrecision
from peftkit.recipe.hyperparameters import Training

__all__ = ["Duration", "Pace", "Schedule", "computed_duration", "duration", "operations_of_a_token"]

_USED, _USED_AT_LEAST, _USED_AT_MOST = 0.3, 0.15, 0.5
"""Share of a device's published rate that training reaches: 21% to 46% with large models (Chowdhery et al. 2022,
table 3); small ones, which keep a device less busy, below that."""

_SAVE_STEPS = 500  # of TrainingArguments


@dataclass(frozen=True)
class Pace:
    """What the parts of a run take."""

    step_seconds: Sequence[float]
    """Of optimizer steps that were measured, the first, which warms up, not among them."""

    evaluation_seconds: float = 0.0
    """Of all validation data once."""

    save_seconds: float = 0.0
    """Of one checkpoint."""


@dataclass(frozen=True)
class Duration:
    """Seconds of a run's training loop, evaluations and checkpoints included."""

    seconds: float
    low: float | None
    high: float | None
    """The interval that holds it 95 of 100 times, if the steps that were measured are like all others, or that of the
    shares of its rate which a device usually reaches; None where one step says nothing about that."""


def duration(pace: Pace, schedule: Schedule) -> Duration:
    """What a run will take at a pace."""
    beside = schedule.evaluations * pace.evaluation_seconds + schedule.saves * pace.save_seconds
    seconds = schedule.steps * fmean(pace.step_seconds) + beside
    measured = len(pace.step_seconds)
    if measured < 2:
        return Duration(seconds, None, None)
    # of the mean of the steps that were measured, and of the sum of those that will be
    error = stdev(pace.step_seconds) * math.sqrt(schedule.steps**2 / measured + schedule.steps)
    reach = float(stdtrit(measured - 1, 0.975)) * error
    return Duration(seconds, max(beside, seconds - reach), seconds + reach)


def operations_of_a_token(parameters: int, *, trains_all: bool) -> int:
    """Sums and products of one token's forward and backward pass (Kaplan et al. 2020, section 2.1).

    Each weight has two in the forward pass and four in the backward pass, of which two are for its own gradient: these
    are spared where it is not trained.

    Args:
        parameters: weights of the products, the head's included and the embeddings' not.
        trains_all: whether these are trained.
    """
    return parameters * (6 if trains_all else 4)


def computed_duration(hardware: Hardware, precision: ChosenPrecision, operations: float | None) -> Duration | None:
    """What so many operations take on a device, without evaluations and checkpoints; None if its rate is not known."""
    rate = hardware.flops_fp32 if precision == "fp32" else hardware.flops_16bit
    if rate is None or operations is None:
        return None
    seconds = operations / rate
    return Duration(seconds / _USED, seconds / _USED_AT_MOST, seconds / _USED_AT_LEAST)


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
