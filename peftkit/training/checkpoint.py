"""The state of a run on the disk: everything that the next step depends on.

A checkpoint is a folder of the adapter or the model as PEFT or Transformers save it, and beside it, as safetensors, the
states of the optimizer, the scheduler, the random numbers and a gradient scaler. It is written under a hidden name.
While training goes on, another thread puts it on the disk, takes the hash of each file, and only then gives it its
name and removes what is too old.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftkit.runs.folder import CARD_NAME, PROGRESS_NAME, Checkpoint, checkpoint_place, rotate
from peftkit.storage import complete_folder, new_part, read_json, write_json, write_text
from peftkit.training.processes import Processes
from peftkit.training.values import read_values, write_values
from peftkit.training.weights import Weights

__all__ = ["CheckpointWriter", "Progress", "StateFiles", "fill_checkpoint", "random_state", "set_random_state"]


_PLACE_IN_SCHEDULE = ("last_epoch", "_step_count", "best", "num_bad_epochs", "cooldown_counter")
"""What of a schedule's state is not its shape."""


@dataclass
class Progress:
    """How far a run is, in what the Trainer does not keep itself."""

    run_id: str
    train_tokens: int = 0
    """Tokens seen in training, without padding."""

    step_seconds: float = 0.0
    """Time of the optimizer steps until the device had computed them, with the fetching of their batches; without
    evaluation and saving."""

    train_seconds: float = 0.0
    peak_memory_bytes: int = 0
    base_perplexity: float | None = None
    skipped_steps: int = 0
    checkpoints: int = 0
    checkpoint_seconds: float = 0.0
    unlogged_losses: list[float] = field(default_factory=list)
    """Of each process, the sum of its losses since the newest line of metrics."""

    logged_step: int = 0

    def unlogged_loss(self, processes: Processes) -> float:
        """This process's sum of them; the mean where there were more or fewer processes, which is what is logged."""
        losses = self.unlogged_losses
        return losses[processes.place.rank] if len(losses) == processes.count else sum(losses) / len(losses)

    def write(self, folder: Path) -> None:
        """Put it into a checkpoint."""
        write_json(folder / PROGRESS_NAME, asdict(self))

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Progress:
        """The progress in a checkpoint that has been verified."""
        return cls(**read_json(checkpoint.path / PROGRESS_NAME))


@dataclass(frozen=True)
class StateFiles:
    """The files of a checkpoint that restore what is no weight."""

    folder: Path

    @property
    def optimizer(self) -> Path:
        """Moments and step counts."""
        return self.folder / "optimizer.safetensors"

    @property
    def scheduler(self) -> Path:
        """Where the learning rate is on its way."""
        return self.folder / "scheduler.safetensors"

    @property
    def scaler(self) -> Path:
        """The scale of fp16 gradients; only such a run has it."""
        return self.folder / "scaler.safetensors"

    @property
    def random(self) -> Path:
        """The states of all random numbers, for each process: now, and when the epoch began."""
        return self.folder / "random.safetensors"

    def randoms(self) -> list[dict[str, Any]]:
        """The states of the random numbers of each process that there was."""
        states: list[dict[str, Any]] = read_values(self.random)
        return states

    def write(self, optimizer: dict[str, Any], scheduler: Any, scaler: Any, randoms: Any) -> None:
        """Write all of them; of the optimizer, its whole state is given."""
        write_values(self.optimizer, optimizer)
        write_values(self.scheduler, scheduler.state_dict())
        if scaler is not None:
            write_values(self.scaler, scaler.state_dict())
        write_values(self.random, randoms)

    def restore(self, weights: Weights, optimizer: Any, scheduler: Any, scaler: Any, *, adopt: bool) -> None:
        """Put the optimizer of some weights, its scheduler and its scaler into the state that was written.

        With `adopt`, hyperparameters are those of the recipe as it is now rather than those that were written: learning
        rate, betas, weight decay and the schedule's shape. A rate that was lowered on a plateau is whole again.
        """
        saved, schedule = read_values(self.optimizer), read_values(self.scheduler)
        if adopt:
            saved["param_groups"] = optimizer.state_dict()["param_groups"]
            place = {name: value for name, value in schedule.items() if name in _PLACE_IN_SCHEDULE}
            schedule = {**scheduler.state_dict(), **place}
        weights.load_state(optimizer, saved)
        scheduler.load_state_dict(schedule)
        if adopt:
            _set_rates(optimizer, scheduler)
        if scaler is not None and self.scaler.is_file():
            scaler.load_state_dict(read_values(self.scaler))


def _set_rates(optimizer: Any, scheduler: Any) -> None:
    """Let the rates be what the schedule says where it stands."""
    if hasattr(scheduler, "lr_lambdas"):
        rates = zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, rate, shape in rates:
            group["lr"] = rate * shape(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


class CheckpointWriter:
    """Writes a run's checkpoints one after the other, the slow half of each beside the training."""

    def __init__(self, folder: Path, run_id: str, keep: int | None) -> None:
        self._folder = folder
        self._run_id = run_id
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def write(self, step: int, fill: Callable[[Path], None], best: int | None) -> None:
        """Let `fill` write into a new folder, which becomes the checkpoint of a step; `best` is one to be kept.

        Raises:
            OSError: this one or the one before could not be written. What is there already stays.
        """
        self.wait()
        place = checkpoint_place(self._folder, step)
        part = new_part(place)
        try:
            fill(part)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._pending = self._thread.submit(self._complete, part, place, best)

    def has(self, step: int) -> bool:
        """Whether the checkpoint of a step is there, once the newest is whole."""
        self.wait()
        return checkpoint_place(self._folder, step).is_dir()

    def wait(self) -> None:
        """Return when the newest checkpoint is whole on the disk.

        Raises:
            OSError: it could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Let the thread end; call it however the run ends."""
        self._thread.shutdown(wait=True)

    def _complete(self, part: Path, place: Path, best: int | None) -> None:
        try:
            complete_folder(part, place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        rotate(self._folder, self._run_id, self._keep, best)


def fill_checkpoint(
    trainer: Any, model: Any, folder: Path, *, optimizer: Any, randoms: Any, losses: list[float]
) -> None:
    """Write all that a run resumes from into a folder.

    Args:
        trainer: of the run, whose scheduler, scaler, state, progress and metrics are written.
        model: with every trained weight.
        folder: new and empty.
        optimizer: its whole state.
        randoms: the states of the random numbers of each process.
        losses: of each process, the sum of those that are not logged yet.
    """
    model.save_pretrained(folder)
    (folder / CARD_NAME).unlink(missing_ok=True)  # PEFT's, which says nothing of this run
    StateFiles(folder).write(optimizer, trainer.lr_scheduler, trainer.accelerator.scaler, randoms)
    # places on this machine say nothing once the folder has moved
    replace(trainer.state, best_model_checkpoint=None).save_to_json(str(folder / "trainer_state.json"))
    replace(
        trainer.progress,
        train_seconds=trainer.train_seconds,
        unlogged_losses=losses,
        logged_step=trainer._globalstep_last_logged,
    ).write(folder)
    metrics = trainer.run.folder.metrics
    write_text(folder / metrics.name, metrics.read_text(encoding="utf-8") if metrics.is_file() else "")


def random_state() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's random numbers, the GPUs' included."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with random numbers from a state."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
