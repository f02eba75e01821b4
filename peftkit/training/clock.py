"""How long optimizer steps take, on devices that compute after they have been asked."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from peftkit.training.checkpoint import Progress

__all__ = ["StepClock"]


class StepClock:
    """Adds the time of optimizer steps to a run's progress.

    A GPU is still computing when the host has asked for a step, and what it then does ends in the time of the next one.
    So the clock runs on from step to step. It is read where the host waits for the device anyway, once a step, and
    where it is stopped the device is waited for.
    """

    def __init__(
        self, progress: Progress, device: torch.device, seconds: Callable[[], float] = time.perf_counter
    ) -> None:
        self._progress = progress
        self._device = device
        self._seconds = seconds
        self._counted: float | None = None
        """Up to when time has been added; None while the clock stands still."""

    def start(self) -> None:
        """Let the clock run, if it does not yet."""
        if self._counted is None:
            self._counted = self._seconds()

    def lap(self) -> None:
        """Add the time up to now; the device has computed all that it was asked for."""
        if self._counted is not None:
            now = self._seconds()
            self._progress.step_seconds += now - self._counted
            self._counted = now

    def stop(self) -> None:
        """Let the clock stand still from the end of the newest step on: evaluation, saving or another epoch follow."""
        if self._counted is not None:
            if self._device.type != "cpu":
                torch.accelerator.synchronize(self._device)
            self.lap()
            self._counted = None
