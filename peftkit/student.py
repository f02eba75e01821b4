"""Student's t distribution, for intervals over a few measurements.

SciPy has it too, in a library of 140 MB of which nothing else is used.
"""

from __future__ import annotations

import math

__all__ = ["two_sided_t"]

_TINY = 1e-300
_STEPS = 10_000


def two_sided_t(freedom: float) -> float:
    """The t that is exceeded, either way, 5 of 100 times.

    P(|T| > t) is the regularised incomplete beta function I(f / (f + t²); f / 2, 1 / 2) with f degrees of freedom
    (Abramowitz and Stegun, 26.5.27 and 26.7.1); t is found by bisection, to the last bits of a double.

    Args:
        freedom: degrees of freedom, at least 1; they need not be whole.
    """
    low, high = 1.9, 13.0  # the normal distribution's 1.96, and the 12.71 of one degree of freedom
    while (middle := (low + high) / 2) not in (low, high):
        if _beta(freedom / (freedom + middle**2), freedom / 2, 0.5) > 0.05:
            low = middle
        else:
            high = middle
    return middle


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, for x between 0 and 1."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)  # where the fraction converges fast
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log) / (a * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    value, upper, lower = 1.0, 1.0, 0.0
    for step in range(1, _STEPS):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / ((1 + term * lower) or _TINY)
        upper = (1 + term / upper) or _TINY
        value *= upper * lower
        if abs(upper * lower - 1) < 1e-15:
            break
    return value
