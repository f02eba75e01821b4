"""The part of a run that every process but the main one has: it prepares and trains the same, and writes nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from peftkit.recipe.loader import RecipeFile
from peftkit.runs.checkpoints import Checkpoint, checkpoint_place
from peftkit.runs.folder import RunFolder
from peftkit.training.processes import Processes
from peftkit.training.signals import StopRequest, stopping_at_signals
from peftkit.training.train import Work, train
from peftkit.workflows.job import Job, prepare_job

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
    place = None if orders.step is None else checkpoint_place(folder.checkpoints, orders.step)
    return Work(
        recipe=job.recipe,
        data=job.data,
        pad_token_id=job.pad_token_id,
        hardware=job.hardware,
        precision=job.precision,
        folder=folder,
        run_id=orders.run_id,
        warnings=[],
        stop=stop,
        check_inputs=lambda: None,  # the main process does
        checkpoint=None if place is None or orders.step is None else Checkpoint(orders.step, place),
        adopt=orders.adopt,
        processes=job.processes,
    )
