"""`merge.json`: what a merged model was made of, and the proof that it is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from peftkit.adapters.proof import Agreement

__all__ = ["MergeReceipt", "Onto"]

Onto = Literal["dequantized", "original"]


@dataclass(frozen=True)
class MergeReceipt:
    """What was merged into what, and how exactly the result computes the same."""

    adapters: list[dict[str, Any]]
    """Of each: its folder, its weight in the sum, and the SHA-256 of its files."""

    base: dict[str, Any]
    quantization: dict[str, Any] | None
    onto: Onto
    dtype: str
    proof: Agreement | None
    """None where it was not asked for."""

    tolerance: float | None
    """Largest relative error that is accepted; None where the merge is onto other weights than the adapter was trained
    on, so that nothing is promised."""

    outputs: dict[str, str]
    """SHA-256 of each file of the merged model."""

    versions: dict[str, str | None]
