"""How long a run will take, from a few of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

from peftkit.planning.schedule import Schedule

__all__ = ["Duration", "Pace", "duration"]


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
    """The interval that holds it 95 of 100 times, if the steps that were measured are like all others; None where one
    step says nothing about that."""


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
