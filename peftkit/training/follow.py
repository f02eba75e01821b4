"""The part of a run that every process but the main one has: it prepares and trains the same, and writes nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from peftkit.recipe.loader import RecipeFile
from peftkit.runs.checkpoints import Checkpoint, checkpoint_place
from peftkit.runs.folder import RunFolder
from peftkit.training.job import Job, prepare_job
from peftkit.training.processes import Processes
from peftkit.training.signals import StopRequest, stopping_at_signals
from peftkit.training.train import Work, train

__all__ = ["Orders", "follow"]

_ORDERS = "orders"


@dataclass(frozen=True)
class Orders:
    """What the main process has decided, and the others must know."""

    run_id: str
    folder: str
    """The run folder, absolute."""

    step: int | None
    """The checkpoint to go on from."""

    adopt: bool
    batch: tuple[int, int]
    """Batch size and accumulation, of all processes together."""

    def give(self, processes: Processes) -> None:
        """Let the others begin to train."""
        processes.tell(_ORDERS, asdict(self))

    @classmethod
    def await_them(cls, processes: Processes) -> Orders:
        """What the main process orders, once it is ready to train.

        Raises:
            PeerError: the run has ended before.
        """
        return cls(**processes.hear(_ORDERS))


def follow(file: RecipeFile, processes: Processes) -> None:
    """Take this process's part of a run.

    Raises:
        InputError, RunError, Stopped: as for the main process.
    """
    with stopping_at_signals() as stop:
        job = prepare_job(file, processes)
        model = job.load()
        orders = Orders.await_them(processes)
        with file.locating():
            train(model, _work(job.with_batch(*orders.batch), orders, stop))


def _work(job: Job, orders: Orders, stop: StopRequest) -> Work:
    folder = RunFolder(Path(orders.folder))
    work = replace(job.work(folder, orders.run_id, [], stop), adopt=orders.adopt)
    if orders.step is None:
        return work
    return replace(work, checkpoint=Checkpoint(orders.step, checkpoint_place(folder.checkpoints, orders.step)))
