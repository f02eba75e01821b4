"""A few prompts of the validation data, and what the model makes of them before and after training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftkit.data.prepare import Prepared
from peftkit.data.prompts import openings
from peftkit.evaluation.generation import write
from peftkit.recipe.evidence import Generation

__all__ = ["Sample", "begin_samples", "complete_samples"]


@dataclass(frozen=True)
class Sample:
    """One prompt with its continuations."""

    prompt: str
    wanted: str
    before: str
    after: str | None = None
    """None until training has ended."""


def begin_samples(model: Any, tokenizer: Any, prepared: Prepared, generation: Generation) -> list[Sample]:
    """Choose prompts, and let the untrained model continue them."""
    chosen = openings(prepared, tokenizer, generation.samples)
    written = write(model, tokenizer, [prompt for prompt, _ in chosen], generation)
    return [Sample(prompt, rest, text) for (prompt, rest), text in zip(chosen, written, strict=True)]


def complete_samples(model: Any, tokenizer: Any, begun: list[Sample], generation: Generation) -> list[Sample]:
    """Let the trained model continue the same prompts."""
    written = write(model, tokenizer, [sample.prompt for sample in begun], generation)
    return [
        Sample(sample.prompt, sample.wanted, sample.before, text) for sample, text in zip(begun, written, strict=True)
    ]
