"""Whether a learning rate is one that a method is usually trained with."""

from __future__ import annotations

from typing import Final

from peftkit.recipe.advice import shown
from peftkit.recipe.advised import usual_rate
from peftkit.recipe.schema import Method

__all__ = ["rate_concern"]

_SMALL = 100_000_000
"""Models with fewer parameters than this take higher rates, and nothing is said of them."""

_RARELY: Final[dict[Method, tuple[float, float]]] = {"full": (1e-6, 1e-4), "lora": (5e-5, 2e-3), "qlora": (5e-5, 2e-3)}
"""For each method: below and above which a rate is rarely the best."""


def rate_concern(method: Method, learning_rate: float, total_parameters: int) -> str | None:
    """What to say of a rate that is far from what a method is usually trained with; None where there is nothing."""
    low, high = _RARELY[method]
    if total_parameters < _SMALL or low <= learning_rate <= high:
        return None
    side = "low" if learning_rate < low else "high"
    used = usual_rate(method)
    what = f"learning_rate {shown(learning_rate)} is {side} for {method}"
    return f"{what}, which is usually trained with {used} ({used.source})."
