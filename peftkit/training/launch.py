"""Several processes of one run on this machine: started, watched, and ended together."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Sequence

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from peftkit.errors import PeerError, PeftkitError, RunError
from peftkit.planning.processes import Place
from peftkit.training.processes import Processes, shared_store
from peftkit.training.subprocesses import passing_on, start_apart

__all__ = ["train_in_processes"]

_LAUNCHER = -1
_HOST = "127.0.0.1"
_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 10.0
"""How long the others may go on after one has failed: to say so in the run folder, or to be noticed as stuck."""


def train_in_processes(arguments: Sequence[str], count: int) -> None:
    """Run a `peftkit train` command in `count` processes that train together.

    They meet at a store that this process keeps on a free port, as torchrun's do. A signal is passed on to each. Once
    one has failed, the others end within seconds; what went wrong is told once.

    Args:
        arguments: what stands after `peftkit`.
        count: how many processes.

    Raises:
        PeerError: one has ended the run, and told why.
        RunError: one was killed.
    """
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    launcher = Processes(Place(_LAUNCHER, count), shared_store(store))
    children = [_start(arguments, rank, count, store.port) for rank in range(count)]
    with passing_on(children) as came:
        failed = _watched(children, came, launcher)
    if failed:
        raise failed


def _start(arguments: Sequence[str], rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    meeting = {"MASTER_ADDR": _HOST, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    environment = {"OMP_NUM_THREADS": str(max(1, cores // count)), **os.environ}
    environment |= {name: str(value) for name, value in {**place, **meeting}.items()}
    return start_apart(arguments, stdout=None if rank == 0 else subprocess.DEVNULL, environment=environment)


def _watched(
    children: Sequence[subprocess.Popen[bytes]], came: Sequence[int], launcher: Processes
) -> PeftkitError | None:
    """Wait for all, but not for long once one has failed or a second signal has come; gives what the first tells."""
    first: PeftkitError | None = None
    deadline = math.inf
    while any([child.poll() is None for child in children]):  # noqa: C419  each is asked
        time.sleep(_LOOK_SECONDS)
        first = first or _failure(children, launcher)
        if deadline == math.inf and (len(came) > 1 or (first and not came)):
            deadline = time.monotonic() + _GRACE_SECONDS
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
    return first or _failure(children, launcher)


def _failure(children: Sequence[subprocess.Popen[bytes]], launcher: Processes) -> PeftkitError | None:
    """What the first process that has failed means for the run; one that was killed has not told it."""
    rank, returned = next(((rank, child.returncode) for rank, child in enumerate(children) if child.returncode), (0, 0))
    if returned >= 0:
        return PeerError("", returned) if returned else None
    name = signal.Signals(-returned).name
    error = RunError(
        f"process {rank + 1} of {launcher.count} was killed by {name}.",
        remedy="What was saved is whole: go on with --resume.",
    )
    end = launcher.end(str(error), error.exit_status)
    return error if end["rank"] == launcher.place.rank else PeerError(end["what"], end["status"])
