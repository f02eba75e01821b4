"""Whether a learning rate is one that a method is usually trained with."""

from __future__ import annotations

from typing import Final

__all__ = ["rate_concern"]

_SMALL = 100_000_000
"""Models with fewer parameters than this take higher rates, and nothing is said of them."""

_USUAL: Final[dict[str, tuple[float, float, str]]] = {
    "full": (1e-6, 1e-4, "2e-5 to 5e-5 (Devlin et al. 2019)"),
    "lora": (5e-5, 2e-3, "1e-4 to 5e-4 (Hu et al. 2021, appendix D)"),
    "qlora": (5e-5, 2e-3, "1e-4 to 2e-4 (Dettmers et al. 2023, appendix B)"),
}
"""For each method: below and above which a rate is rarely the best, and what was used by whom."""


def rate_concern(method: str, learning_rate: float, total_parameters: int) -> str | None:
    """What to say of a rate that is far from what a method is usually trained with; None where there is nothing."""
    low, high, used = _USUAL[method]
    if total_parameters < _SMALL or low <= learning_rate <= high:
        return None
    side = "low" if learning_rate < low else "high"
    return f"learning_rate {learning_rate:g} is {side} for {method}, which is usually trained with {used}."
