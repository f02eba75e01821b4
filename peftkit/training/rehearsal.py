"""A few steps of a run, to see what all of them will take."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import TrainerCallback, set_seed

from peftkit.data.collator import INPUTS
from peftkit.data.prepare import Prepared
from peftkit.models.kernels import use_fast_kernels
from peftkit.models.loss import evaluate_loss
from peftkit.models.outline import held_bytes, kept_for_backward
from peftkit.planning.duration import Pace
from peftkit.shortage import forget_frames, is_out_of_memory
from peftkit.training.memory import evaluating, peak_memory_bytes, reset_peak_memory
from peftkit.training.prepare import Run
from peftkit.training.train import build_trainer, train_from
from peftkit.training.trainer import TokenTrainer

__all__ = ["Rehearsal", "rehearse"]

_LEAST = 3
"""Steps that are measured at least: two say something about a third."""
_MOST = 40
_EVALUATION_BATCHES = 6
_WITHOUT = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}


@dataclass(frozen=True)
class Rehearsal:
    """What was measured of a run's first steps, and of its longest rows."""

    pace: Pace
    peak_memory_bytes: int
    weights_bytes: int
    activations_bytes: int
    """Kept for the backward pass of the longest batch."""


def rehearse(model: Any, run: Run, seconds: float) -> Rehearsal:
    """Train a model for about so many seconds as `train` would, with its longest batches, and measure that.

    The model is changed, and the run folder may be given a checkpoint: give one that is thrown away.

    Raises:
        RunError: a step does not fit into memory, or a loss is not finite.
    """
    set_seed(run.recipe.training.seed)
    use_fast_kernels(model, run.hardware)
    reset_peak_memory(run.hardware)
    trainer = build_trainer(model, replace(run, file=run.file.with_training(_WITHOUT)))
    watch = _Watch(seconds)
    trainer.add_callback(watch)
    evaluation = _evaluation_seconds(trainer, run.data.validation) if run.data.validation else 0.0
    try:
        train_from(trainer, None)
        kept = _longest_step(trainer, run.data.train)
        save = _save_seconds(trainer) if run.recipe.training.save_strategy != "no" else 0.0
    finally:
        trainer.finish_checkpoints()
    return Rehearsal(
        pace=Pace(watch.step_seconds, evaluation, save),
        peak_memory_bytes=peak_memory_bytes(run.hardware),
        weights_bytes=held_bytes(model),
        activations_bytes=kept,
    )


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Takes the time of each step, and ends the training when there is enough of it."""

    def __init__(self, seconds: float) -> None:
        self._budget = seconds
        self._marks: list[float] = []

    @property
    def step_seconds(self) -> tuple[float, ...]:
        """Of each step but the first; of that one where there is no other."""
        found = tuple(float(each) for each in np.diff(self._marks))
        return found[1:] or found

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin the first step."""
        del args, state, control
        self._marks.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End a step, and the training after enough of them."""
        del args, state
        self._marks.append(time.perf_counter())
        measured = len(self._marks) - 2
        late = self._marks[-1] - self._marks[0] > self._budget
        if (late and measured >= _LEAST) or measured >= _MOST:
            control.should_training_stop = True


def _longest_step(trainer: TokenTrainer, train: Prepared) -> int:
    """A forward and backward pass of the longest rows, while the optimizer's state is there; gives what was kept."""
    batch = _longest(trainer, train, trainer.args.per_device_train_batch_size)
    inputs = {name: batch[name].to(trainer.args.device) for name in INPUTS if name in batch}
    trainer.model.train()
    try:
        return _kept_in_step(trainer, inputs)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        forget_frames(error)
        short = error
    raise trainer.shortage(inputs) from short


def _kept_in_step(trainer: TokenTrainer, inputs: dict[str, torch.Tensor]) -> int:
    with kept_for_backward(trainer.model) as kept, trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, inputs | {"use_cache": False})
    trainer.accelerator.backward(loss)
    trainer.model.zero_grad()
    return sum(kept.values())


def _longest(trainer: TokenTrainer, prepared: Prepared, rows: int) -> dict[str, torch.Tensor]:
    """A batch of the longest rows."""
    order = np.argsort(-prepared.sequences.lengths, kind="stable")[:rows]
    batch: dict[str, torch.Tensor] = trainer.data_collator([prepared.sequences[int(index)] for index in order])
    return batch


def _evaluation_seconds(trainer: TokenTrainer, validation: Prepared) -> float:
    """Of all validation data once: from batches all over it, after one of the longest rows."""
    rows = trainer.args.per_device_eval_batch_size
    with evaluating(rows):
        evaluate_loss(trainer.model, [_longest(trainer, validation, rows)], trainer.precision)
    sequences = validation.sequences
    batches = -(-len(sequences) // rows)
    chosen = np.unique(np.linspace(0, batches - 1, _EVALUATION_BATCHES).astype(int))
    indices = [index for batch in chosen for index in range(batch * rows, min((batch + 1) * rows, len(sequences)))]
    start = time.perf_counter()
    subset: Any = Subset(sequences, indices)  # type: ignore[arg-type]
    evaluate_loss(trainer.model, trainer.get_eval_dataloader(subset), trainer.precision)
    return (time.perf_counter() - start) * len(sequences) / len(indices)


def _save_seconds(trainer: TokenTrainer) -> float:
    """Of one checkpoint until it is whole."""
    start = time.perf_counter()
    trainer.save_step()
    trainer.finish_checkpoint()
    return time.perf_counter() - start
