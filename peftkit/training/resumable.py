"""A Trainer whose run can be stopped anywhere and gone on with as if it had not been."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import TrainerCallback

from peftkit.errors import MemoryRunError, RunError, Stopped
from peftkit.runs.checkpoints import Checkpoint, checkpoint_place
from peftkit.runs.folder import CARD_NAME
from peftkit.shortage import forget_frames, is_out_of_memory, memory_for
from peftkit.storage import manifest_faults, write_text
from peftkit.training.checkpoint import CheckpointWriter, Progress, StateFiles, random_state, set_random_state
from peftkit.training.memory import shortage
from peftkit.training.prepare import Run
from peftkit.training.shared import SharedTrainer
from peftkit.training.values import read_values
from peftkit.training.watching import StepClock
from peftkit.training.weights import Weights

__all__ = ["ResumableTrainer"]


class ResumableTrainer(SharedTrainer):
    """A Trainer that writes checkpoints which verify, goes on from them exactly, and stops between two steps."""

    _tr_loss: torch.Tensor
    """Trainer's sum of the losses that have not been logged yet."""

    def __init__(self, run: Run, weights: Weights, **arguments: Any) -> None:
        super().__init__(run.processes, weights, **arguments)
        self.run = run
        self.progress = Progress(run.run_id) if run.checkpoint is None else Progress.read(run.checkpoint)
        self._writer = CheckpointWriter(run.folder.checkpoints, run.run_id, run.recipe.training.save_total_limit)
        self._resumed: Checkpoint | None = None
        self._begun = time.perf_counter()
        self._random_at_epoch: dict[str, Any] = random_state()
        self.in_epoch = False
        self.clock = StepClock(self.progress, self.args.device)
        self.newest_inputs: dict[str, Any] | None = None
        """The newest batch of a pass; None before the first."""

        self.add_callback(_Epochs(self))

    def train_from(self, checkpoint: Checkpoint | None, *, before_leaving: Callable[[], None] = lambda: None) -> None:
        """Train from the start, or resume from a checkpoint that verifies, even where nothing is left to train.

        Args:
            checkpoint: where to resume.
            before_leaving: called where a second signal ends the process at once.

        Raises:
            Stopped: a signal came; the step is saved.
            MemoryRunError: memory was short; the steps before are saved where they are whole.
        """
        self._begun = time.perf_counter()
        self._resumed = checkpoint
        with self.run.stop.between_steps(before_leaving):
            try:
                with self.saving_steps():
                    if checkpoint is None or checkpoint.step < self._last_step():
                        self.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
                    else:
                        self._take_up_the_end(checkpoint)
            except MemoryRunError:
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                forget_frames(error)
                short: Exception | None = error
            else:
                short = None
        if short is not None:  # of neither a pass nor an evaluation, which say so themselves
            told = self.shortage(None)
            told.moved = True  # an optimizer that takes one weight after the other may have taken some of them
            raise told from short
        self._wait()
        stopping = self._told_to_stop()
        if stopping is not None:  # it came while the last step was being finished
            if not self.args.load_best_model_at_end and not self._is_saved():
                self._save_checkpoint(self.model, None)
            self._stop(stopping)

    def shortage(self, inputs: dict[str, Any] | None) -> MemoryRunError:
        """The error for a pass over these inputs that did not fit into memory or, without them, an optimizer step."""
        return shortage(self, inputs, self.run.recipe, self.run.hardware)

    def _take_up_the_end(self, checkpoint: Checkpoint) -> None:
        """The weights and the state after the last step, where nothing is left to train."""
        self._load_from_checkpoint(str(checkpoint.path))
        self._init_training_state(self._last_step(), self._last_step(), 1, str(checkpoint.path), None)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()

    @contextlib.contextmanager
    def saving_steps(self) -> Iterator[None]:
        """Save the steps before what does not fit into memory within the block, if memory and disk allow that much.

        An evaluation that did not fit would not be made again after them; where it decides which checkpoint is the
        best, they are not saved.
        """
        try:
            yield
        except MemoryRunError as error:
            error.moved = self.state.global_step > 0
            decides = error.batch == "evaluation" and self.args.load_best_model_at_end
            if not (self.processes.are_many or decides):  # other processes are in the middle of the step
                with contextlib.suppress(RuntimeError, MemoryError, OSError, MemoryRunError):
                    self._save_newest_step()
            raise

    def _save_newest_step(self) -> None:
        if self.state.global_step and not self._is_saved():
            self._save_checkpoint(self.model, None)
            self._writer.wait()

    def _last_step(self) -> int:
        return int(self.set_initial_training_values(self.args, self.get_train_dataloader())[-1])

    def _init_training_state(self, *arguments: Any) -> tuple[int, int]:
        begun: tuple[int, int] = super()._init_training_state(*arguments)
        if self._resumed is not None and self.state.best_global_step and self._best_place().is_dir():
            self.state.best_model_checkpoint = str(self._best_place())
        return begun

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights; Trainer's own would open a pickle that somebody has put beside them."""
        del model
        self.weights.load(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states = (self.weights, self.optimizer, self.lr_scheduler, self.accelerator.scaler)
            StateFiles(Path(checkpoint)).restore(*states, adopt=self.run.adopt)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """It has been loaded with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        randoms = self._saved_randoms(checkpoint)
        as_many = len(randoms) == self.processes.count
        set_random_state(randoms[self.processes.place.rank if as_many and not self.draws_alike else 0]["now"])
        if not (as_many or self.draws_alike):
            self.part_ways()

    def _saved_randoms(self, checkpoint: str) -> list[dict[str, Any]]:
        """The random states of each process that there was."""
        randoms: list[dict[str, Any]] = read_values(StateFiles(Path(checkpoint)).random)
        return randoms

    def _own(self, losses: list[float]) -> float:
        """This process's of all of them; where there were more or fewer, their mean, which is what is logged."""
        if len(losses) == self.processes.count:
            return losses[self.processes.place.rank]
        return sum(losses) / len(losses)

    def begin_epoch(self) -> None:
        """Note, or put back, what the order of an epoch's data is drawn from."""
        self.in_epoch = True
        self._tr_loss = self._tr_loss.cpu()  # the losses are added up where they are read: logging waits for no GPU
        if self._resumed is not None:
            checkpoint, self._resumed = self._resumed, None
            saved = self._saved_randoms(str(checkpoint.path))[0]
            within = not float(self.state.epoch or 0).is_integer()
            set_random_state(saved["epoch" if within else "now"])
            progress = self.progress
            self._tr_loss.fill_(self._own(progress.unlogged_losses))
            self._globalstep_last_logged = progress.logged_step
        self.draws_alike = True
        self._random_at_epoch = self.processes.of_main(random_state())
        set_random_state(self._random_at_epoch)

    def _maybe_log_save_evaluate(self, *arguments: Any, **more: Any) -> None:
        """Log, evaluate and save; then stop, if a signal has come.

        What is saved after the last step of an epoch or of the run waits for the epoch's end: the evaluation that comes
        then belongs to it, and whoever goes on from there would not do it again.
        """
        stopping = self._told_to_stop()
        save = self.control.should_save or stopping is not None
        epoch_ends = float(self.state.epoch or 0).is_integer() or self.state.global_step >= self.state.max_steps
        waits = self.in_epoch and epoch_ends
        self.control.should_save = save and not waits
        super()._maybe_log_save_evaluate(*arguments, **more)
        if waits:
            self.control.should_save = save
        elif stopping is not None:
            self._stop(stopping)

    def _told_to_stop(self) -> int | None:
        """The signal that has come to any of the processes: all of them stop after the same step."""
        return int(self.processes.largest(self.run.stop.number or 0)[0]) or None

    def _wait(self) -> None:
        """Let the newest checkpoint become whole; that is time that training waits."""
        start = time.perf_counter()
        self._writer.wait()
        self.progress.checkpoint_seconds += time.perf_counter() - start

    def _stop(self, number: int) -> NoReturn:
        self._wait()
        step, last = self.state.global_step, self.state.max_steps
        raise Stopped(number, f"stopped after step {step} of {last}, which is saved.")

    def _is_saved(self) -> bool:
        self._writer.wait()
        place = checkpoint_place(self.run.folder.checkpoints, self.state.global_step)
        return bool(self.processes.of_main(place.is_dir()))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint that `resume` goes on from."""
        del model, trial
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
                fill = partial(self._fill, whole, optimizer=optimizer, randoms=randoms, losses=losses)
                self._writer.write(self.state.global_step, fill, self._best_step())
        self.progress.checkpoint_seconds += time.perf_counter() - start
        if self.processes.is_main:
            self.run.inputs.check()

    def _fill(self, model: Any, folder: Path, *, optimizer: Any, randoms: Any, losses: list[float]) -> None:
        model.save_pretrained(folder)
        (folder / CARD_NAME).unlink(missing_ok=True)  # PEFT's, which says nothing of this run
        StateFiles(folder).write(optimizer, self.lr_scheduler, self.accelerator.scaler, randoms)
        # places on this machine say nothing once the folder has moved
        replace(self.state, best_model_checkpoint=None).save_to_json(str(folder / "trainer_state.json"))
        replace(
            self.progress,
            train_seconds=self.train_seconds,
            unlogged_losses=losses,
            logged_step=self._globalstep_last_logged,
        ).write(folder)
        metrics = self.run.folder.metrics
        write_text(folder / metrics.name, metrics.read_text(encoding="utf-8") if metrics.is_file() else "")

    def finish_checkpoints(self) -> None:
        """Wait for what is being written, however training ended."""
        try:
            self._writer.wait()
        finally:
            self._writer.close()

    @property
    def train_seconds(self) -> float:
        """Time of the training loop so far, in this process and those that it goes on from."""
        return self.progress.train_seconds + time.perf_counter() - self._begun

    def _best_step(self) -> int | None:
        return self.state.best_global_step if self.args.load_best_model_at_end else None

    def _best_place(self) -> Path:
        return checkpoint_place(self.run.folder.checkpoints, self.state.best_global_step)

    def _load_best_model(self) -> None:
        """Go back to the best checkpoint, which must still be what it was."""
        self._writer.wait()
        self.processes.gathered(None)  # it is whole now, for all of them
        faults = manifest_faults(self._best_place())
        if faults != []:
            what = f"is the best checkpoint, and is not sound: {'; '.join(faults or ['it is not there'])}."
            raise RunError(what, where=str(self._best_place()), remedy="Set load_best_model_at_end: false, and go on.")
        self.weights.load(self._best_place())


class _Epochs(TrainerCallback):  # type: ignore[misc]
    """Tells the trainer when an epoch begins and ends."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, state, control
        self._trainer.begin_epoch()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, state, control
        self._trainer.in_epoch = False
        self._trainer.clock.stop()
