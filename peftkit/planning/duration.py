"""How long a run will take: from a few of its steps, or from what a device is said to compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from peftkit.planning.hardware import Hardware
from peftkit.planning.precision import ChosenPrecision
from peftkit.planning.schedule import Schedule
from peftkit.student import two_sided_t

__all__ = ["Duration", "Pace", "computed_duration", "duration", "operations_of_a_token"]

_USED, _USED_AT_LEAST, _USED_AT_MOST = 0.3, 0.15, 0.5
"""Share of a device's published rate that training reaches: 21% to 46% with large models (Chowdhery et al. 2022,
table 3); small ones, which keep a device less busy, below that."""


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
    reach = two_sided_t(measured - 1) * error
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
