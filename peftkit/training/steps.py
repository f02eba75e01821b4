"""The optimizer steps of a run: timed, shared by its processes, and checked before they are applied."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from peftkit.data.collator import INPUTS
from peftkit.data.formats.format import NO_LABEL
from peftkit.errors import RunError
from peftkit.models.loss import Loss, evaluate_loss
from peftkit.planning.decisions import ChosenPrecision
from peftkit.training.checkpoint import Progress
from peftkit.training.prepare import Run
from peftkit.training.processes import Processes

__all__ = ["StepCheck", "StepClock", "blank_batches", "in_step", "whole_loss"]

_FEW_TOKENS = 2
_NAMED = 3
_OVERFLOWS = 50
"""Steps in a row whose fp16 gradients may overflow while their scale, which is halved each time, is searched."""


class StepClock:
    """Adds the time of optimizer steps to a run's progress.

    A GPU still computes when the host has queued a step, so part of its work ends in the time of the next one. The
    clock therefore runs on from step to step. It is read where the host waits for the device anyway, once a step, and
    stopping it waits for the device.
    """

    def __init__(
        self, progress: Progress, device: torch.device, seconds: Callable[[], float] = time.perf_counter
    ) -> None:
        self._progress, self._device, self._seconds = progress, device, seconds
        self._counted: float | None = None
        """Until when time has been added; None while the clock is stopped."""

    def start(self) -> None:
        """Start the clock, if it does not run."""
        if self._counted is None:
            self._counted = self._seconds()

    def lap(self) -> None:
        """Add the time up to now; the device has computed all that it was asked for."""
        if self._counted is not None:
            now = self._seconds()
            self._progress.step_seconds += now - self._counted
            self._counted = now

    def stop(self) -> None:
        """Stop the clock at the end of the newest step: evaluation, saving or another epoch follow."""
        if self._counted is not None:
            if self._device.type != "cpu":
                torch.accelerator.synchronize(self._device)
            self.lap()
            self._counted = None


class StepCheck:
    """The batches and losses of the current optimizer step; on a GPU the losses may still be computing."""

    def __init__(self, run: Run, model: Any, precision: ChosenPrecision, progress: Progress, clock: StepClock) -> None:
        self._run, self._model, self._precision = run, model, precision
        self._progress, self._clock = progress, clock
        self._batches: list[dict[str, torch.Tensor]] = []
        self._losses: list[torch.Tensor] = []
        self._overflows = 0

    def add_batch(self, batch: dict[str, torch.Tensor]) -> None:
        """Note a batch whose pass begins."""
        self._batches.append(batch)

    def add_loss(self, loss: torch.Tensor) -> None:
        """Note the loss of the newest batch."""
        self._losses.append(loss)

    def check(self, norm: Any, step: int, *, scales: bool) -> tuple[float, list[float] | None]:
        """Read losses and gradient norm of the step, and check that they are finite.

        This is the only place where a step waits for the device: all that the host must know comes in one piece.

        With `scales`, a scaler of fp16 gradients skips steps that overflow. Steps are numbered from 1.

        Returns:
            The norm and the losses; None for these where the step is to be skipped.

        Raises:
            RunError: they are not finite, and the recipe does not say to skip.
        """
        batches, losses, self._batches, self._losses = self._batches, self._losses, [], []
        *values, norm = torch.stack([*losses, torch.as_tensor(norm, device=losses[0].device)]).tolist()
        self._clock.lap()
        finite = [math.isfinite(loss) for loss in values]
        tokens = sum(int(batch["num_tokens"].sum()) for batch in batches)
        broken, tokens_of_all = self._run.processes.sums(finite.count(False), tokens)
        self._progress.train_tokens += int(tokens_of_all)
        if not broken and (math.isfinite(norm) or self._may_overflow(scales=scales)):
            self._overflows = 0 if math.isfinite(norm) else self._overflows
            return float(norm), values
        blamed = [batch for batch, sound in zip(batches, finite, strict=True) if not (broken and sound)]
        what = "loss" if broken else "gradient norm"
        line = f"the {what} is not a finite number at step {step}{self._named(blamed)}"
        if self._run.recipe.on_nonfinite == "stop":
            raise RunError(
                f"{line}.",
                where="training",
                remedy="Lower training.learning_rate, keep max_grad_norm at 1.0, or set precision: fp32. If the rows "
                "are to blame, remove them, or set on_nonfinite: skip.",
            )
        self._progress.skipped_steps += 1
        self._run.warn(f"{line}; the step is skipped.")
        return float(norm), None

    def _may_overflow(self, *, scales: bool) -> bool:
        """In fp16 the scaler finds its scale by overflowing, and skips such a step itself."""
        self._overflows += 1
        return scales and self._overflows < _OVERFLOWS

    def _named(self, batches: list[dict[str, Any]]) -> str:
        """Where the rows are that are to blame, as far as they can be found among those of their batch."""
        alone: list[int] = []
        if not self._run.is_sharded:  # no process could compute a row by itself
            alone = [number for batch in batches for number in _rows_that_break(self._model, batch, self._precision)]
        numbers = alone or [int(number) for batch in batches for number in batch.get("numbers", ())]
        found = self._run.processes.gathered((self._run.data.train.places(numbers[:_NAMED]), len(numbers)))
        places = [place for few, _ in found for place in few][:_NAMED]
        count = sum(each for _, each in found)
        if not places:
            return ""
        more = f" and {count - _NAMED} more" if count > _NAMED else ""
        return f", in {'rows' if count > 1 else 'the row'} {', '.join(places)}{more}"


def blank_batches(dataset: Any, collator: Any) -> Iterator[dict[str, Any]]:
    """Batches without effect: the beginning of a row, without labels."""
    row = {name: values[:_FEW_TOKENS] for name, values in dataset[0].items() if name != "number"}
    row["labels"] = np.full_like(row["labels"], NO_LABEL)
    while True:
        yield {**collator([row]), "num_tokens": np.zeros(1, np.int64)}


def in_step(
    batches: Iterable[dict[str, Any]], blanks: Iterator[dict[str, Any]], processes: Processes
) -> Iterator[dict[str, Any]]:
    """Batches, then blanks until every process has had all of its own: each waits for the weights of the others."""
    own = iter(batches)
    while processes.largest((batch := next(own, None)) is not None):
        yield batch or next(blanks)


def whole_loss(own: Loss, processes: Processes, step: int) -> Loss:
    """The loss of all processes together, of each one's own after a number of steps.

    Raises:
        RunError: it is not finite.
    """
    total, tokens, sequences = processes.sums(own.total, own.tokens, own.sequences)
    if not math.isfinite(total):
        when = f"after step {step}" if step else "before the first step"
        what = f"the loss of the validation data is not a finite number {when}."
        remedy = "Lower training.learning_rate, or check that the base is sound."
        raise RunError(what, where="evaluation", remedy=remedy)
    return Loss(total, int(tokens), int(sequences))


def _rows_that_break(model: Any, batch: dict[str, Any], precision: ChosenPrecision) -> list[int]:
    """The numbers of the rows of a batch that have a loss which is not finite even alone, without dropout."""
    if "numbers" not in batch or len(batch["numbers"]) != len(batch["input_ids"]):
        return []  # rows that were put one after the other are not taken apart again
    broken = []
    for index, number in enumerate(batch["numbers"].tolist()):
        length = int(batch["num_tokens"][index])  # padding could break the row too
        row = {name: batch[name][index : index + 1, :length] for name in INPUTS if name in batch}
        taught = bool((row["labels"][:, 1:] >= 0).any())
        if taught and not math.isfinite(evaluate_loss(model, [row], precision).total):
            broken.append(int(number))
    return broken
