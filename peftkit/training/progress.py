"""What a user sees while a model trains: a bar on a terminal, a line for each evaluation anywhere."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from peftkit import console

__all__ = ["ProgressReport"]


class ProgressReport(TrainerCallback):  # type: ignore[misc]
    """A bar with loss, learning rate, tokens per second and time left; evaluations stay above it as lines."""

    def __init__(self, title: str, trainer: Any) -> None:
        self._title = title
        self._trainer = trainer
        self._bar: Progress | None = None
        self._task: Any = None
        self._loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Draw the bar, where there is a terminal to draw on."""
        del args, control
        if not console.stderr().is_terminal:
            return
        self._bar = Progress(
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

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar on."""
        del args, control
        if self._bar is None:
            return
        numbers = [f"{self._tokens_per_second():,.0f} tok/s", f"lr {self._trainer.current_learning_rate():.2e}"]
        if self._loss is not None:
            numbers.insert(0, f"loss {self._loss:.4f}")
        self._bar.update(self._task, completed=state.global_step, numbers="  ".join(numbers))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Keep the newest loss, and say how an evaluation came out."""
        del args, control
        logs = logs or {}
        self._loss = logs.get("loss", self._loss)
        if "eval_loss" in logs and state.global_step:
            trained = f"loss {self._loss:.4f} · " if self._loss is not None else ""
            console.info(
                f"{self._title} · epoch {state.epoch:.3g} · step {state.global_step}/{state.max_steps} · {trained}"
                f"validation loss {logs['eval_loss']:.4f} · perplexity {logs['eval_perplexity']:.4g} · "
                f"{self._tokens_per_second():,.0f} tokens/s"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar away."""
        del args, state, control
        self.close()

    def close(self) -> None:
        """Give the terminal back, also when training ends with an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _tokens_per_second(self) -> float:
        progress = self._trainer.progress
        return float(progress.train_tokens / progress.step_seconds) if progress.step_seconds else 0.0
