"""Means over seeds, and whether two of them differ by more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance

from peftkit.runs.comparison import Statistic

__all__ = ["statistic", "welch_interval"]

_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t that is exceeded, either way, 5 of 100 times, for 1 to 30 degrees of freedom (Student 1908)."""


def statistic(values: Sequence[float]) -> Statistic:
    """The mean of some runs' numbers, with its standard error."""
    error = math.sqrt(variance(values) / len(values)) if len(values) > 1 else None
    return Statistic(fmean(values), error, list(values))


def welch_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float] | None:
    """The interval that holds the difference of two means, ours less theirs, 95 of 100 times (Welch 1947).

    None where one of them has a single value, which says nothing about its noise.
    """
    if len(ours) < 2 or len(theirs) < 2:
        return None
    parts = [variance(values) / len(values) for values in (ours, theirs)]
    squared = sum(parts)
    difference = fmean(ours) - fmean(theirs)
    if squared == 0:
        return difference, difference
    freedom = squared**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (ours, theirs), strict=True))
    reach = _T[min(int(freedom), len(_T)) - 1] * math.sqrt(squared)
    return difference - reach, difference + reach
