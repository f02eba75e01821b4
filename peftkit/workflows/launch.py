"""Several processes of one run on this machine: started, watched, and ended together."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Sequence

from torch.distributed.rendezvous import TCPStore

from peftkit import console
from peftkit.planning.processes import Place
from peftkit.training.processes import Processes, shared_store
from peftkit.workflows.apart import passing_on, start_apart

__all__ = ["train_in_processes"]

_LAUNCHER = -1
_HOST = "127.0.0.1"
_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 10.0
"""How long the others may go on after one has failed: to say so in the run folder, or to be noticed as stuck."""


def train_in_processes(arguments: Sequence[str], count: int) -> int:
    """Run a `peftkit train` command in `count` processes that train together.

    They meet at a store that this process keeps on a free port, as torchrun's do. A signal is passed on to each. Once
    one has failed, the others end within seconds; what went wrong is told once.

    Args:
        arguments: what stands after `peftkit`.
        count: how many processes.

    Returns:
        The exit status of the run.
    """
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    children = [_start(arguments, rank, count, store.port) for rank in range(count)]
    with passing_on(children) as came:
        return _watched(children, Processes(Place(_LAUNCHER, count), shared_store(store)), came)


def _start(arguments: Sequence[str], rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    meeting = {"MASTER_ADDR": _HOST, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    environment = {"OMP_NUM_THREADS": str(max(1, cores // count)), **os.environ}
    environment |= {name: str(value) for name, value in {**place, **meeting}.items()}
    return start_apart(arguments, stdout=None if rank == 0 else subprocess.DEVNULL, environment=environment)


def _watched(children: Sequence[subprocess.Popen[bytes]], launcher: Processes, came: Sequence[int]) -> int:
    """Wait for all, but not for long once one has failed or a second signal has come; gives the run's exit status."""
    status = 0
    deadline = math.inf
    while any([child.poll() is None for child in children]):  # noqa: C419  each is asked
        time.sleep(_LOOK_SECONDS)
        failed = next((rank for rank, child in enumerate(children) if child.returncode), None)
        if failed is not None and not status:
            status = _status(children[failed].returncode, failed, launcher)
        if deadline == math.inf and (len(came) > 1 or (status and not came)):
            deadline = time.monotonic() + _GRACE_SECONDS
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
    return status


def _status(returned: int, rank: int, launcher: Processes) -> int:
    """The exit status of a run of which one process has failed. One that was killed has not told it."""
    if returned > 0:
        return returned
    name = signal.Signals(-returned).name
    what = f"process {rank + 1} of {launcher.count} was killed by {name}. What was saved is whole: go on with --resume."
    end = launcher.end(what, 1)
    if end["rank"] == launcher.place.rank:
        console.error(what)
    return int(end["status"])
