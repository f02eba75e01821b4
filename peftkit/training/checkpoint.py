"""The state of a run on the disk: everything that the next step depends on.

A checkpoint is a folder of the adapter or the model as PEFT or Transformers save it, with the states of the optimizer,
the scheduler, the random number generators and a gradient scaler. These are safetensors files: tensors, and in the
metadata the structure around them as JSON. A file that was tampered with can hold wrong numbers, but cannot run
anything. `torch.save` would write a pickle; `torch.load(weights_only=True)` does not open numpy's random state.

A checkpoint is written under a hidden name. While training continues, another thread puts it on the disk, hashes each
file, and only then gives it its name and removes what is too old.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from peftkit.models.attach import save_model
from peftkit.runs.folder import CARD_NAME, PROGRESS_NAME, Checkpoint, checkpoint_place, rotate
from peftkit.storage import complete_folder, new_part, read_json, write_json, write_text
from peftkit.training.processes import Processes
from peftkit.training.weights import Weights

__all__ = [
    "CheckpointWriter", "Progress", "fill_checkpoint", "random_state", "read_randoms", "read_values", "restore_states",
    "set_random_state", "write_states", "write_values",
]  # fmt: skip

_TENSOR, _ARRAY, _TUPLE, _PAIRS, _FLOAT = "tensor", "array", "tuple", "pairs", "float"
_STRUCTURE = "structure"
_PLACE_IN_SCHEDULE = ("last_epoch", "_step_count", "best", "num_bad_epochs", "cooldown_counter")
"""What of a schedule's state is not its shape."""


@dataclass
class Progress:
    """How far a run is, in what the Trainer does not keep itself."""

    run_id: str
    train_tokens: int = 0
    """Tokens seen in training, without padding."""

    step_seconds: float = 0.0
    """Of the optimizer steps until the device had computed them, with the fetching of their batches; without evaluation
    and saving."""

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
        return losses[processes.rank] if len(losses) == processes.count else sum(losses) / len(losses)

    def write(self, folder: Path) -> None:
        """Put it into a checkpoint."""
        write_json(folder / PROGRESS_NAME, asdict(self))

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Progress:
        """The progress in a checkpoint that has been verified."""
        return cls(**read_json(checkpoint.path / PROGRESS_NAME))


def write_states(folder: Path, optimizer: dict[str, Any], scheduler: Any, scaler: Any, randoms: Any) -> None:
    """Write what a checkpoint restores besides weights, with the optimizer's whole state; only fp16 has a scaler."""
    states = {"optimizer": optimizer, "scheduler": scheduler.state_dict(), "random": randoms}
    if scaler is not None:
        states["scaler"] = scaler.state_dict()
    for name, state in states.items():
        write_values(folder / f"{name}.safetensors", state)


def read_randoms(folder: Path) -> list[dict[str, Any]]:
    """The random states of each process that there was: `now`, and when the `epoch` began."""
    states: list[dict[str, Any]] = read_values(folder / "random.safetensors")
    return states


def restore_states(folder: Path, weights: Weights, optimizer: Any, scheduler: Any, scaler: Any, *, adopt: bool) -> None:
    """Restore the states of the optimizer of some weights, its scheduler and its scaler.

    With `adopt`, hyperparameters are those of the recipe as it is now rather than those that were written: learning
    rate, betas, weight decay and the schedule's shape. A rate that was lowered on a plateau is whole again.
    """
    saved, schedule = (read_values(folder / f"{name}.safetensors") for name in ("optimizer", "scheduler"))
    if adopt:
        saved["param_groups"] = optimizer.state_dict()["param_groups"]
        place = {name: value for name, value in schedule.items() if name in _PLACE_IN_SCHEDULE}
        schedule = {**scheduler.state_dict(), **place}
    weights.load_state(optimizer, saved)
    scheduler.load_state_dict(schedule)
    if adopt:
        _set_rates(optimizer, scheduler)
    if scaler is not None and (folder / "scaler.safetensors").is_file():
        scaler.load_state_dict(read_values(folder / "scaler.safetensors"))


def _set_rates(optimizer: Any, scheduler: Any) -> None:
    """Set the rates to those of the schedule at its place."""
    if hasattr(scheduler, "lr_lambdas"):
        rates = zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, rate, shape in rates:
            group["lr"] = rate * shape(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


class CheckpointWriter:
    """Writes a run's checkpoints one after the other, the slow half of each while training continues."""

    def __init__(self, folder: Path, run_id: str, keep: int | None) -> None:
        self._folder = folder
        self._run_id = run_id
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def write(self, step: int, fill: Callable[[Path], None], best: int | None) -> None:
        """Call `fill` with a new folder, which becomes the checkpoint of a step; the one of step `best` is kept.

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
        """End the thread; call it however the run ends."""
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
    """Write all that a run resumes from into a new folder.

    That is the model with every trained weight, the optimizer's whole state, the trainer's scheduler, scaler, state,
    progress and metrics, and for each process its random states and the sum of its losses that are not logged yet.
    """
    save_model(model, folder)
    (folder / CARD_NAME).unlink(missing_ok=True)  # PEFT's, which says nothing of this run
    write_states(folder, optimizer, trainer.lr_scheduler, trainer.accelerator.scaler, randoms)
    # a path on this machine is wrong once the folder has moved
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
    """The states of Python's, numpy's and torch's random number generators, the GPUs' included."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the states that `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def write_values(path: Path, value: Any) -> None:
    """Write dictionaries, lists, tuples, tensors, arrays, strings and numbers to a file.

    A tensor that occurs several times, as the maps of 8-bit optimizers do, is in the file once.

    Raises:
        TypeError: there is something else in them.
    """
    named: dict[int, tuple[str, torch.Tensor]] = {}
    structure = _packed(value, lambda tensor: named.setdefault(id(tensor), (str(len(named)), tensor))[0])
    stored: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, given in named.values():
        tensor = given.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        is_own = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
        stored[name] = tensor if is_own else tensor.clone()  # the library writes no tensors that share a storage
        storages.add(storage.data_ptr())
    save_file(stored, path, metadata={_STRUCTURE: json.dumps(structure, allow_nan=False)})


def read_values(path: Path) -> Any:
    """The value in a file, its tensors on the CPU.

    Raises:
        SafetensorError, ValueError, KeyError: the file is damaged, or is not one of these.
    """
    with safe_open(path, framework="pt") as file:
        structure = json.loads((file.metadata() or {})[_STRUCTURE])
        return _unpacked(structure, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  no mapping


def _packed(value: Any, name_of: Callable[[torch.Tensor], str]) -> Any:
    """A value as JSON, in which tensors stand by their names in the file."""
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return {_TENSOR: name_of(value)}
    if isinstance(value, np.ndarray):
        return {_ARRAY: name_of(torch.from_numpy(value.copy()))}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.bool_ | np.integer | np.floating) and not isinstance(value, np.longdouble):
        return _packed(value.item(), name_of)
    if isinstance(value, float):
        return {_FLOAT: value.hex()}  # exact, infinities and NaN included
    if isinstance(value, list):
        return [_packed(item, name_of) for item in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_packed(item, name_of) for item in value]}
    if isinstance(value, dict):
        return {_PAIRS: [[_packed(key, name_of), _packed(item, name_of)] for key, item in value.items()]}
    raise TypeError(f"a {type(value).__name__} cannot be kept in a checkpoint")


def _unpacked(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, item),) = value.items()
    if kind == _TENSOR:
        return tensors[item]
    if kind == _ARRAY:
        return tensors[item].numpy()
    if kind == _FLOAT:
        return float.fromhex(item)
    if kind == _TUPLE:
        return tuple(_unpacked(each, tensors) for each in item)
    return {_unpacked(key, tensors): _unpacked(each, tensors) for key, each in item}
