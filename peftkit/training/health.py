"""Signs in a run's numbers that something is wrong with it, though it goes on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

__all__ = ["HealthWatch", "sign_of_trouble"]

_LOOKED_AT = 20
_FEWEST = 5
_TIMES_SPREAD = 6.0
_LEAST_RISE = 0.5
_LEAST_NATS = 0.1
_STUCK = 3


def sign_of_trouble(history: Sequence[Mapping[str, Any]]) -> str | None:
    """What the newest of the logged steps says together with those before it.

    A spike is a loss above the median of the twenty before by more than six times their usual distance from it, half
    of it, and a tenth of a nat. A gradient norm is stuck when it has been exactly zero three times.
    """
    steps = [log for log in history if "loss" in log]
    if not steps:
        return None
    norms = [log.get("grad_norm") for log in steps]
    if norms[-_STUCK:] == [0.0] * _STUCK and norms[-_STUCK - 1 : -_STUCK] != [0.0]:
        return (
            f"the gradient norm has been zero since step {steps[-_STUCK]['step']}: nothing is learnt. "
            "Check the labels, and which weights are trained."
        )
    losses = [float(log["loss"]) for log in steps]
    usual = _risen_from(losses)
    if usual is not None and _risen_from(losses[:-1]) is None:  # told once, though it stays there
        return (
            f"the loss rose to {losses[-1]:.4g} at step {steps[-1]['step']}, from about {usual:.4g}. "
            "If it does not fall again, lower training.learning_rate or keep max_grad_norm at 1.0."
        )
    return None


def _risen_from(losses: Sequence[float]) -> float | None:
    """The usual loss before the newest one, if that is far above it."""
    before = losses[:-1][-_LOOKED_AT:]
    if len(before) < _FEWEST:
        return None
    median = statistics.median(before)
    spread = statistics.median(abs(loss - median) for loss in before)
    far = losses[-1] > median + max(_TIMES_SPREAD * spread, _LEAST_RISE * median, _LEAST_NATS)
    return median if far else None


class HealthWatch(TrainerCallback):  # type: ignore[misc]
    """Warns of each sign as it shows."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Look at the numbers of a step that has been logged."""
        del args, control
        if "loss" in (logs or {}) and (sign := sign_of_trouble(state.log_history)):
            self._warn(sign)
