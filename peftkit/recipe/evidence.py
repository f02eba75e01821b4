"""The sections that say how a result is measured, and what it is expected to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from peftkit.metrics import in_group
from peftkit.recipe.methods import Method
from peftkit.recipe.section import Section, disagree

__all__ = ["Expectation", "Generation"]

Positive = Annotated[int, Field(gt=0)]
if TYPE_CHECKING:
    Metric: TypeAlias = str
else:
    Metric = Literal[tuple(in_group("quality", "completions", "cost"))]


class Generation(Section):
    """How completions are written where they are measured or shown: arguments of Transformers' `GenerationConfig`."""

    max_new_tokens: Positive = 64
    """Longest completion, in tokens; the end token ends it earlier."""

    num_beams: Positive = 1
    """Continuations that are followed at the same time; 1 always takes the likeliest token. The LoRA paper uses 10 on
    E2E (Hu et al. 2021, table 11)."""

    length_penalty: float = 1.0
    """With beams, a continuation's log-likelihood is divided by its length to this power: above 1 prefers longer ones,
    below 1 shorter ones. The LoRA paper uses 0.9 on E2E."""

    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0
    """Sequences of this many tokens come once at most, the prompt's included; 0 lets them repeat. The LoRA paper uses
    4 on E2E."""

    batch_size: Positive = 16
    """Prompts that are continued together. It changes memory and speed, and never the result but by rounding."""

    samples: Annotated[int, Field(ge=0)] = 3
    """Prompts of the validation data that are continued before and after training, to be seen in the report; 0 leaves
    that out."""


class Expectation(Section):
    """A band that a metric is expected in, and who found it there; `compare` and `reproduce` check it."""

    metric: Metric
    """What is measured: a metric of the run, or of the completions that it writes."""

    low: float | None = None
    """Lowest value that is as expected. Unset: any."""

    high: float | None = None
    """Highest value that is as expected. Unset: any."""

    methods: list[Method] | None = None
    """The methods that it is said of. Unset: all."""

    source: str
    """Where the figures are from: a paper with its table, or a measurement with its machine."""

    @property
    def band(self) -> str:
        """The band, for people."""
        if self.low is None:
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"

    def distance(self, value: float) -> float:
        """How far a value is from the band: 0 in it, negative below it, positive above it."""
        if self.low is not None and value < self.low:
            return value - self.low
        return value - self.high if self.high is not None and value > self.high else 0.0

    @model_validator(mode="after")
    def _is_a_band(self) -> Expectation:
        if self.low is None and self.high is None:
            raise ValueError("Give low, high or both.")
        if self.low is not None and self.high is not None and self.low > self.high:
            disagree(("high", f"is {self.high:g}, below low {self.low:g}. Change one of them."))
        return self
