"""A clock for training steps that knows that a GPU computes after the host has asked it to."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch

__all__ = ["Observer", "StepClock", "synchronised_seconds", "useful_tokens"]


def synchronised_seconds() -> float:
    """The time, once the device has computed everything that it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def useful_tokens(inputs: dict[str, Any], padding: int | None) -> torch.Tensor:
    """How many tokens of a batch are no padding, as a tensor on its device: reading it would wait for the device."""
    ids: torch.Tensor = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    if mask is not None and mask.dim() == ids.dim():
        real: torch.Tensor = mask.sum()
        return real
    if padding is None:
        return torch.tensor(ids.numel())
    labels = inputs.get("labels")
    useful = ids != padding
    return (useful if labels is None else useful | (labels >= 0)).sum()


class Observer(Protocol):
    """Watches the steps that follow the timed ones."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End, when the steps are computed."""


class StepClock:
    """Times steps in a row: the first warm up and do not count, and those after the timed ones are only watched.

    The device is waited for at the two ends of the timed steps, and nowhere between them.
    """

    def __init__(self, warmup: int, timed: int, observed: int = 0, observer: Observer | None = None) -> None:
        self._warmup, self._timed, self._observed = warmup, timed, observed
        self._observer = observer
        self._tokens: list[int | torch.Tensor] = []
        self._start = self._stop = 0.0
        self.allocated_bytes: int | None = None
        """Most bytes of the GPU that were allocated at once in the timed steps."""

    @property
    def steps(self) -> int:
        """Of all three kinds together."""
        return self._warmup + self._timed + self._observed

    def step(self, tokens: int | torch.Tensor) -> None:
        """End a step in which so many useful tokens were trained on."""
        self._tokens.append(tokens)
        done = len(self._tokens)
        if done == self._warmup:
            self._start = synchronised_seconds()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        if done == self._warmup + self._timed:
            self._stop = synchronised_seconds()
            if torch.cuda.is_available():
                self.allocated_bytes = int(torch.cuda.max_memory_allocated())
            if self._observer and self._observed:
                self._observer.start()
        elif done == self.steps and self._observer:
            self._observer.stop()

    @property
    def seconds(self) -> float:
        """Of the timed steps."""
        return self._stop - self._start

    @property
    def tokens(self) -> int:
        """Useful ones of the timed steps."""
        return sum(int(each) for each in self._tokens[self._warmup : self._warmup + self._timed])
