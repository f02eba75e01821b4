"""Means over seeds, and whether two of them differ by more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance

from peftkit.runs.comparison import Statistic
from peftkit.student import two_sided_t

__all__ = ["statistic", "welch_interval"]


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
    reach = two_sided_t(freedom) * math.sqrt(squared)
    return difference - reach, difference + reach
