"""`metrics.jsonl`: one line for each logged step and each evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from peftkit.storage import append_json_line

__all__ = ["MetricsFile"]

_STEP_NAMES = ("loss", "learning_rate", "grad_norm")
_EVALUATION_NAMES = {"eval_loss": "eval_loss", "eval_perplexity": "perplexity"}


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Writes each set of numbers as it comes, so that a run that is killed has its curve."""

    def __init__(self, path: Path, trainer: Any) -> None:
        self._path = path
        self._trainer = trainer

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Add a line for a training step or an evaluation; the Trainer's closing summary is neither."""
        del args, control
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
                **{name: _finite(value) for name, value in line.items()},
                "train_tokens": self._trainer.progress.train_tokens,
                "seconds": round(self._trainer.train_seconds, 3),
            },
        )


def _finite(value: Any) -> Any:
    """A number, or None for one that JSON does not have: the norm of an fp16 step that was skipped."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None
