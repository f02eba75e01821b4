"""What a measurement of speed trains, as the benchmark tells the process that does it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Contest"]


@dataclass(frozen=True)
class Contest:
    """What to train, and how."""

    name: str
    """guide, trl, raw or peftkit."""

    method: str
    base: str
    """A folder with a configuration and a tokenizer."""

    rows: str
    """A file of token rows."""

    empty_rows: int
    """Rows without a token that the documents have in addition; only the guide's script trains on them."""

    length: int
    """Tokens in a row."""

    batch: int
    """Rows in a step."""

    warmup: int
    timed: int
    observed: int
    """Steps of each kind; see `benchmarks.clock.StepClock`."""

    lora: dict[str, Any] = field(default_factory=dict)
    packing: bool = True
    attention: str | None = None
    """Of peftkit: the attention to use instead of the one that it chooses."""

    training: dict[str, Any] = field(default_factory=dict)
    """Of peftkit: further hyperparameters of the recipe, as `torch_compile`."""
