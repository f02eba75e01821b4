"""The one subclass of the Trainer of Transformers: all that peftkit overrides of it, and why.

`tests/training/test_overrides.py` fails where Transformers renames one of these methods, or calls it in another way.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from peftkit import console
from peftkit.data.collator import INPUTS, ON_HOST
from peftkit.errors import RunError, Stopped
from peftkit.models.attention import known_layout
from peftkit.models.dtypes import autocast_to, compute_dtype
from peftkit.models.loss import compute_loss_at_labels, evaluate_loss
from peftkit.planning.decisions import ChosenPrecision
from peftkit.runs.folder import Checkpoint, checkpoint_place
from peftkit.shortage import memory_for
from peftkit.storage import manifest_faults
from peftkit.training.checkpoint import (
    CheckpointWriter,
    Progress,
    fill_checkpoint,
    random_state,
    read_randoms,
    restore_states,
    set_random_state,
)
from peftkit.training.memory import evaluating, within_memory
from peftkit.training.prepare import Run
from peftkit.training.steps import StepCheck, StepClock, blank_batches, in_step, whole_loss
from peftkit.training.weights import Weights, whole_tensor

__all__ = ["TokenTrainer"]


class TokenTrainer(Trainer):  # type: ignore[misc]
    """A Trainer for batches of `peftkit.data.collator.Collator`.

    The loss is computed only where a label is, a step with a non-finite loss is not taken, checkpoints verify and
    resume exactly, and several processes take the steps that one would take.
    """

    _tr_loss: torch.Tensor
    """Trainer's sum of the losses that have not been logged yet."""

    def __init__(self, run: Run, weights: Weights, **arguments: Any) -> None:
        self.run, self.weights, self.processes = run, weights, run.processes
        super().__init__(model=weights.model, **arguments)
        self.progress = Progress(run.run_id) if run.checkpoint is None else Progress.read(run.checkpoint)
        self.clock = StepClock(self.progress, self.args.device)
        self.newest_inputs: dict[str, Any] | None = None
        """The newest batch of a pass; None before the first."""

        self.draws_alike = False
        """Whether every process draws the same random numbers: from an epoch's beginning until its order is drawn."""

        self.in_epoch = False
        self._writer = CheckpointWriter(run.folder.checkpoints, run.run_id, run.recipe.training.save_total_limit)
        self._resumed = run.checkpoint
        self._begun = time.perf_counter()
        self._random_at_epoch: dict[str, Any] = random_state()
        self._check = StepCheck(run, self.model, self.precision, self.progress, self.clock)
        self.add_callback(_Epochs(self))
        self._takes_label_indices = compute_loss_at_labels(self.model, self.args.label_smoothing_factor)
        if self._takes_label_indices:
            self.label_smoother = None  # the model smooths itself
            self.model_accepts_loss_kwargs = True
        else:
            console.info("the head is no plain linear layer, so the loss is computed from whole logits: more memory.")
        weights.spread()
        # where they are sharded, Trainer is to leave them as they are
        self.is_distributed_loading_by_transformers = weights.are_sharded

    def begin(self) -> None:
        """Start the time of the training loop."""
        self._begun = time.perf_counter()

    def save_step(self) -> None:
        """Write a checkpoint of the newest step."""
        self._save_checkpoint(self.model, None)

    def finish_checkpoint(self) -> None:
        """Wait until the newest checkpoint is whole, and count that time."""
        start = time.perf_counter()
        self._writer.wait()
        self.progress.checkpoint_seconds += time.perf_counter() - start

    def finish_checkpoints(self) -> None:
        """Wait for what is being written, however training ended."""
        try:
            self._writer.wait()
        finally:
            self._writer.close()

    def begin_epoch(self) -> None:
        """Record, or restore, the random state that the order of an epoch's data is drawn from."""
        self.in_epoch = True
        self._tr_loss = self._tr_loss.cpu()  # losses are summed where they are read: logging waits for no GPU
        if self._resumed is not None:
            saved, self._resumed = read_randoms(self._resumed.path)[0], None
            within = not float(self.state.epoch or 0).is_integer()
            set_random_state(saved["epoch" if within else "now"])
            self._tr_loss.fill_(self.progress.unlogged_loss(self.processes))
            self._globalstep_last_logged = self.progress.logged_step
        self.draws_alike = True
        self._random_at_epoch = self.processes.of_main(random_state())
        set_random_state(self._random_at_epoch)

    def end_epoch(self) -> None:
        """Stop the clock; the next save is one between two epochs."""
        self.in_epoch = False
        self.clock.stop()

    @property
    def precision(self) -> ChosenPrecision:
        """Of matmuls, in training as in evaluation."""
        return "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "fp32"

    @property
    def train_seconds(self) -> float:
        """Time of the training loop so far, in this process and those that it resumes."""
        return self.progress.train_seconds + time.perf_counter() - self._begun

    def current_learning_rate(self) -> float:
        """The rate of the next step."""
        return float(self._get_learning_rate())

    # What is overridden of a step

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[dict[str, Any]], Any]:
        """The batches of a step, which begins here: as many in each process, as it waits for the others' gradients.

        From the first step of an epoch on, each process draws its own dropout.
        """
        self.clock.start()
        if self.processes.are_many:
            epoch_iterator = chain(epoch_iterator, blank_batches(self.train_dataset, self.data_collator))
        samples: tuple[list[dict[str, Any]], Any] = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.draws_alike:
            self.draws_alike = False
            self.processes.draw_apart()
        return samples

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass.

        Returns:
            Zero, on the CPU, which Trainer adds to the losses to be logged. The real loss is added where the step is
            checked: here the host would wait for it.
        """
        self._check.add_batch(dict(inputs))
        self.newest_inputs = {name: inputs[name] for name in INPUTS if name in inputs}
        packed = inputs["packed"]
        for name in ON_HOST if self._takes_label_indices else (*ON_HOST, "label_indices"):
            inputs.pop(name, None)
        inputs["use_cache"] = False  # with a cache, packed documents would see each other
        step = super().training_step

        def compute() -> torch.Tensor:
            with known_layout(packed=packed):
                loss: torch.Tensor = step(model, inputs, num_items_in_batch)
            return loss

        self._check.add_loss(within_memory(self, compute, self.newest_inputs))
        return torch.zeros(())

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Autocast for 16-bit weights too, whatever the precision: they meet others in float32."""
        contexts: contextlib.ExitStack = super().compute_loss_context_manager()
        contexts.enter_context(autocast_to(self._compute_dtype, self.model.device))
        return contexts

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        """The norm, once the step is known to be finite: Trainer calls this before each step, and logs it.

        A skipped step has no effect: the optimizer's step does nothing, and no loss is logged for it.
        """
        norm = whole_tensor(super()._get_grad_norm(model, grad_norm))
        scaler = self.accelerator.scaler
        number, losses = self._check.check(norm, self.state.global_step + 1, scales=scaler is not None)
        for loss in losses or ():
            self._tr_loss += loss
        if losses is None:
            self._globalstep_last_logged += 1
            if scaler is None:
                self.accelerator.gradient_state._set_sync_gradients(False)
        return number

    def evaluation_loop(self, dataloader: Any, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> EvalLoopOutput:
        """The loss and perplexity of all labels together; Trainer's own is a mean of the batches' means.

        Raises:
            RunError: the loss is not finite.
            MemoryRunError: a batch does not fit into memory.
        """
        self.clock.stop()
        batches = dataloader
        if self.weights.are_sharded:
            batches = in_step(dataloader, blank_batches(self.train_dataset, self.data_collator), self.processes)
        with evaluating(self.args.per_device_eval_batch_size):
            own = evaluate_loss(self.model, batches, self.precision)
        loss = whole_loss(own, self.processes, self.state.global_step)
        metrics = {f"{metric_key_prefix}_loss": loss.mean, f"{metric_key_prefix}_perplexity": loss.perplexity}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=loss.sequences)

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        if not self.weights.are_sharded:  # each process moves only its part
            super()._move_model_to_device(model, device)

    # What is overridden of checkpoints

    def _maybe_log_save_evaluate(self, *arguments: Any, **more: Any) -> None:
        """Log, evaluate and save; then stop, if a signal has come.

        A checkpoint after the last step of an epoch or of the run waits for the epoch's end: the evaluation that comes
        then belongs to it, and a run that resumes from there would not do it again.
        """
        stopping = self.run.told_to_stop()
        save = self.control.should_save or stopping is not None
        epoch_ends = float(self.state.epoch or 0).is_integer() or self.state.global_step >= self.state.max_steps
        waits = self.in_epoch and epoch_ends
        self.control.should_save = save and not waits
        super()._maybe_log_save_evaluate(*arguments, **more)
        if waits:
            self.control.should_save = save
        elif stopping is not None:
            self.stop(stopping)

    def _save_checkpoint(self, *_: Any) -> None:
        """Write a checkpoint without a pickle, the slow half of it while training continues."""
        self.clock.stop()
        start = time.perf_counter()
        self.store_flos()
        self.progress.checkpoints += 1
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(self._best_place())
        randoms = self.processes.gathered({"now": random_state(), "epoch": self._random_at_epoch})
        losses = self.processes.gathered(float(self._tr_loss))
        short = memory_for("a checkpoint", where="training", remedy="Free memory that others use, and resume the run.")
        with short, self.weights.gathered() as whole:
            optimizer = self.weights.state_of(self.optimizer)
            if self.processes.is_main:
                fill = partial(fill_checkpoint, self, whole, optimizer=optimizer, randoms=randoms, losses=losses)
                best = self.state.best_global_step if self.args.load_best_model_at_end else None
                self._writer.write(self.state.global_step, fill, best)
        self.progress.checkpoint_seconds += time.perf_counter() - start
        if self.processes.is_main:
            self.run.inputs.check()

    def _init_training_state(self, *arguments: Any) -> tuple[int, int]:
        """Trainer's own, with the present path of the best checkpoint: the folder may have moved."""
        begun: tuple[int, int] = super()._init_training_state(*arguments)
        if self._resumed is not None and self.state.best_global_step and self._best_place().is_dir():
            self.state.best_model_checkpoint = str(self._best_place())
        return begun

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *_: Any) -> None:
        """Load the weights; Trainer's own would open a pickle that somebody has put there."""
        self.weights.load(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both, and the scaler, from safetensors rather than pickles."""
        if checkpoint is not None:
            states = (self.weights, self.optimizer, self.lr_scheduler, self.accelerator.scaler)
            restore_states(Path(checkpoint), *states, adopt=self.run.adopt)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """It has been loaded with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random state of each process or, with another number of processes, of the main one."""
        if checkpoint is None:
            return
        randoms = read_randoms(Path(checkpoint))
        as_many = len(randoms) == self.processes.count
        set_random_state(randoms[self.processes.rank if as_many and not self.draws_alike else 0]["now"])
        if not (as_many or self.draws_alike):
            self.processes.draw_apart()

    def _load_best_model(self) -> None:
        """Load the best checkpoint, which must still be what it was."""
        self._writer.wait()
        self.processes.gathered(None)  # it is whole now, for all of them
        faults = manifest_faults(self._best_place())
        if faults != []:
            what = f"is the best checkpoint, and is not sound: {'; '.join(faults or ['it is not there'])}."
            raise RunError(what, where=str(self._best_place()), remedy="Set load_best_model_at_end: false, and resume.")
        self.weights.load(self._best_place())

    def load_end(self, checkpoint: Checkpoint) -> None:
        """Load the weights and the state after the last step, where nothing is left to train."""
        self._load_from_checkpoint(str(checkpoint.path))
        self._init_training_state(self.last_step(), self.last_step(), 1, str(checkpoint.path), None)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()

    def last_step(self) -> int:
        """The number of the last step of the run."""
        return int(self.set_initial_training_values(self.args, self.get_train_dataloader())[-1])

    def stop(self, number: int) -> NoReturn:
        """End the run after a step that is saved, by raising `Stopped`."""
        self.finish_checkpoint()
        step, last = self.state.global_step, self.state.max_steps
        raise Stopped(number, f"stopped after step {step} of {last}, which is saved.")

    def is_saved(self) -> bool:
        """Whether the newest step has a checkpoint."""
        return bool(self.processes.of_main(self._writer.has(self.state.global_step)))

    def _best_place(self) -> Path:
        return checkpoint_place(self.run.folder.checkpoints, self.state.best_global_step)

    @cached_property
    def _compute_dtype(self) -> torch.dtype:
        return compute_dtype(self.model, self.precision)


class _Epochs(TrainerCallback):  # type: ignore[misc]
    """Calls the trainer when an epoch begins, to draw the order of its data, and when it ends."""

    def __init__(self, trainer: TokenTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.begin_epoch()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self._trainer.end_epoch()
