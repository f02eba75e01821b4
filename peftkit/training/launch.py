"""peftkit commands as child processes: one at a time, or several that train one run together."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from peftkit import console
from peftkit.errors import PeerError, PeftkitError, RunError, Stopped
from peftkit.runs.folder import is_held
from peftkit.training.processes import Processes, handling, shared_store

__all__ = ["passing_on", "run_apart", "start_apart", "train_in_processes", "wait_for"]

_LAUNCHER = -1
_HOST = "127.0.0.1"
_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 10.0
"""How long the others may run after one has failed: enough to record it in the run folder."""

_POLL_SECONDS = 0.5
_DIE_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of Linux's prctl."""


def train_in_processes(arguments: Sequence[str], count: int) -> None:
    """Run a `peftkit train` command, given by its arguments, in `count` processes that train together.

    They meet at a store that this process keeps on a free port, as torchrun's do. A signal is passed on to each. Once
    one has failed, the others end within seconds; the failure is reported once.

    torch's `elastic_launch` would not do: it signals a process with its data loader's workers, which then die before
    the step is finished; in torch 2.9 it kills a process that needs more than 30 seconds to save; and where it is
    killed itself, the processes keep running.

    Raises:
        PeerError: one has ended the run, and reported why.
        RunError: one was killed.
    """
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    launcher = Processes(_LAUNCHER, count, store=shared_store(store))
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
    """Wait for all, but only briefly after a failure or a second signal; returns the first failure."""
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
    """The error of the first process that has failed; one that was killed has not recorded any."""
    rank, returned = next(((rank, child.returncode) for rank, child in enumerate(children) if child.returncode), (0, 0))
    if returned >= 0:
        return PeerError("", returned) if returned else None
    name = signal.Signals(-returned).name
    error = RunError(
        f"process {rank + 1} of {launcher.count} was killed by {name}.",
        remedy="What was saved is whole: resume with --resume.",
    )
    end = launcher.end(str(error), error.exit_status)
    return error if end["rank"] == launcher.rank else PeerError(end["what"], end["status"])


def run_apart(arguments: Sequence[str], end_when: Callable[[], bool] = lambda: False) -> int:
    """Run a `peftkit` command and wait for it; its messages are shown, its stdout is not.

    A signal to this process is passed on, and on Linux also its end if it is killed: the run is saved before both end.
    Once `end_when`, which is called twice a second, returns True, the command gets SIGTERM.

    Returns:
        The command's exit status.

    Raises:
        Stopped: a signal came.
    """
    process = start_apart(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE if console.is_heard() else None)
    with _relayed(process), passing_on([process]) as came:
        ending = False
        while True:
            try:
                status = process.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if not ending and end_when():
                    process.terminate()
                    ending = True
    if came:
        raise Stopped(came[0], f"stopped by {signal.Signals(came[0]).name}.")
    return status


def start_apart(
    arguments: Sequence[str],
    *,
    stdout: int | None,
    stderr: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a `peftkit` command, which on Linux gets SIGTERM when this process is killed."""
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    return subprocess.Popen(
        [sys.executable, "-m", "peftkit", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        process_group=0,  # Ctrl-C reaches this process alone, and is passed on once
        preexec_fn=(lambda: libc.prctl(_DIE_WITH_PARENT, signal.SIGTERM)) if libc else None,
    )


def wait_for(folder: Path) -> None:
    """Wait for a process that still saves what it has trained, as its parent was killed a moment ago."""
    if is_held(folder):
        console.info(f"waiting for the process that is at work in {folder}.")
    while is_held(folder):
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _relayed(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Within the block, report what a process writes to its stderr, where that is a pipe."""

    def report(lines: Iterable[bytes]) -> None:
        for line in lines:
            console.info(line.decode(errors="replace").rstrip())

    if process.stderr is None:
        yield
        return
    with process.stderr as lines:
        reader = threading.Thread(target=report, args=(lines,))
        reader.start()
        try:
            yield
        finally:
            reader.join()


@contextlib.contextmanager
def passing_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Within the block, pass signals on to processes; yields a list of those received."""
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)
        for process in processes:
            process.send_signal(number)

    with handling(handle):
        yield came
