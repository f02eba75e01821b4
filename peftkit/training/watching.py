"""What is recorded and shown while a model trains: `metrics.jsonl`, signs of trouble, a progress bar."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from transformers import TrainerCallback

from peftkit import console
from peftkit.storage import append_json_line

__all__ = ["HealthWatch", "MetricsFile", "ProgressReport", "finite", "sign_of_trouble"]

_STEP_NAMES = ("loss", "learning_rate", "grad_norm")
_EVALUATION_NAMES = {"eval_loss": "eval_loss", "eval_perplexity": "perplexity"}

_LOOKED_AT = 20
_FEWEST = 5
_TIMES_SPREAD = 6.0
_LEAST_RISE = 0.5
_LEAST_NATS = 0.1
_STUCK = 3


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Writes each set of metrics at once, so that a run that is killed has its curve."""

    def __init__(self, path: Path, trainer: Any) -> None:
        self._path, self._trainer = path, trainer

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Add a line for a training step or an evaluation; the Trainer's closing summary is neither."""
        logs = logs or {}
        line = {name: logs[name] for name in _STEP_NAMES if name in logs}
        line |= {ours: logs[theirs] for theirs, ours in _EVALUATION_NAMES.items() if theirs in logs}
        if not line:
            return
        append_json_line(
            self._path,
            {
                "step": state.global_step,
                "epoch": round(state.epoch or 0.0, 4),
                **{name: finite(value) for name, value in line.items()},
                "train_tokens": self._trainer.progress.train_tokens,
                "seconds": round(self._trainer.train_seconds, 3),
            },
        )


def finite(value: Any) -> Any:
    """A number, or None for a non-finite one, which JSON lacks: a huge perplexity, the norm of a skipped fp16 step."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def sign_of_trouble(history: Sequence[Mapping[str, Any]]) -> str | None:
    """What the newest of the logged steps shows, compared with those before it.

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
    if usual is not None and _risen_from(losses[:-1]) is None:  # reported once, though it stays there
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
    """Warns of signs of trouble."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Look at the metrics of a logged step."""
        if "loss" in (logs or {}) and (sign := sign_of_trouble(state.log_history)):
            self._warn(sign)


class ProgressReport(TrainerCallback):  # type: ignore[misc]
    """A bar with loss, learning rate, tokens per second and time left; evaluations stay above it as lines."""

    def __init__(self, title: str, trainer: Any) -> None:
        self._title, self._trainer = title, trainer
        self._bar: Bar | None = None
        self._task: Any = None
        self._loss: float | None = None

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Draw the bar, where there is a terminal to draw on."""
        if not console.draws():
            return
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console.stderr(),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=state.max_steps, completed=state.global_step, numbers="")

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Advance the bar."""
        if self._bar is None:
            return
        numbers = [f"{self._tokens_per_second():,.0f} tok/s", f"lr {self._trainer.current_learning_rate():.2e}"]
        if self._loss is not None:
            numbers.insert(0, f"loss {self._loss:.4f}")
        self._bar.update(self._task, completed=state.global_step, numbers="  ".join(numbers))

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Keep the newest loss, and print the result of an evaluation."""
        logs = logs or {}
        self._loss = logs.get("loss", self._loss)
        if "eval_loss" in logs and state.global_step:
            trained = f"loss {self._loss:.4f} · " if self._loss is not None else ""
            console.info(
                f"{self._title} · epoch {state.epoch:.3g} · step {state.global_step}/{state.max_steps} · {trained}"
                f"validation loss {logs['eval_loss']:.4f} · perplexity {logs['eval_perplexity']:.4g} · "
                f"{self._tokens_per_second():,.0f} tokens/s"
            )

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Release the terminal, also when training ends with an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _tokens_per_second(self) -> float:
        progress = self._trainer.progress
        return float(progress.train_tokens / progress.step_seconds) if progress.step_seconds else 0.0
