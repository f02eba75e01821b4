"""One trial of a search: an ordinary run in a process of its own, watched while it trains."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from peftkit.errors import InputError, Stopped
from peftkit.recipe.hyperparameters import Training
from peftkit.runs.folder import RunFolder
from peftkit.training.launch import run_apart, wait_for

__all__ = ["Outcome", "State", "Watch", "train_trial"]

State = Literal["finished", "pruned", "failed", "unfinished"]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    state: State
    eval_loss: float | None = None
    """Of the validation data: after training, or when the trial was ended early."""

    error: str | None = None


class Watch:
    """Looks at a run's evaluations, each once and in order, until one of them ends it.

    What comes of it depends on the losses alone and not on when they are seen: the newest evaluation of a run that has
    trained to its end never ends it.
    """

    def __init__(self, folder: RunFolder, training: Training, is_hopeless: Callable[[int, float], bool]) -> None:
        self._folder = folder
        self._training = training
        self._is_hopeless = is_hopeless
        self._seen = 0
        self.pruned: Outcome | None = None

    def look(self) -> bool:
        """Look at what is new; gives whether the run is to end."""
        for number, loss in list(self._evaluations())[self._seen :]:
            if self.pruned:
                break
            self._seen = number
            if self._is_hopeless(number, loss):
                self.pruned = Outcome("pruned", loss if math.isfinite(loss) else None)
        return self.pruned is not None

    def _evaluations(self) -> Iterator[tuple[int, float]]:
        """Number and loss of each evaluation between the first step and the last."""
        if not self._folder.metrics.is_file():
            return
        text = self._folder.metrics.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        evaluated = [line for line in lines if "eval_loss" in line and line["step"] > 0]
        for number, line in enumerate(evaluated, start=1):
            if not self._is_last(line["step"], line["epoch"]):
                yield number, math.inf if line["eval_loss"] is None else line["eval_loss"]

    def _is_last(self, step: int, epoch: float) -> bool:
        training = self._training
        if training.max_steps > 0:
            return step >= training.max_steps
        return epoch >= training.num_train_epochs - 1e-4  # lines have four digits of it


def train_trial(arguments: Sequence[str], watch: Watch, folder: RunFolder, is_late: Callable[[], bool]) -> Outcome:
    """Train a trial, or go on with it, until it has come to its end or is ended early; where time is up it is saved.

    Raises:
        InputError: it is not as `train` can take it.
        Stopped: a signal came; what was trained is saved.
    """
    wait_for(folder.path)
    status = 0
    if not watch.look():
        going_on = [] if folder.is_free else ["--resume"]
        command = ["train", *arguments, "--output", str(folder.path), *going_on]
        status = run_apart(command, lambda: watch.look() or is_late())
    if watch.look() and watch.pruned:
        return watch.pruned
    stopped = status in (128 + signal.SIGTERM, -signal.SIGTERM)
    if stopped and is_late():
        return Outcome("unfinished")
    if stopped or status in (128 + signal.SIGINT, 128 + signal.SIGHUP):
        number = signal.SIGTERM if stopped else status - 128
        raise Stopped(number, f"{folder.path} was stopped by {signal.Signals(number).name}.")
    if status == 2:
        remedy = "Mend it, and give the same command again."
        raise InputError("cannot be trained; its message stands above.", where=str(folder.path), remedy=remedy)
    return _outcome(folder, status)


def _outcome(folder: RunFolder, status: int) -> Outcome:
    manifest = folder.read() if folder.manifest.is_file() else None
    if status < 0:
        name = signal.Signals(-status).name
        memory = ", as the system does when its memory is short" if name == "SIGKILL" else ""
        return Outcome("failed", error=f"ended by {name}{memory}.")
    if status or manifest is None:
        told = manifest.error if manifest and manifest.status == "failed" else None
        return Outcome("failed", error=told or f"ended with status {status} before it trained.")
    loss = manifest.metrics.eval_loss
    if loss is None or not math.isfinite(loss):
        return Outcome("failed", error="its validation loss is no finite number.")
    return Outcome("finished", loss)
