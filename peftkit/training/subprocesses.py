"""Commands in processes of their own: each has its own peak of memory, and one that crashes leaves the others alone."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from peftkit import console
from peftkit.errors import Stopped
from peftkit.runs.lock import is_held

__all__ = ["passing_on", "run_apart", "start_apart", "wait_for"]

_LOOK_SECONDS = 0.5
_DIE_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of Linux's prctl."""


def run_apart(arguments: Sequence[str], end_when: Callable[[], bool] = lambda: False) -> int:
    """Run a `peftkit` command and wait for it; its messages are seen, its result is not.

    A signal to this process is passed on, so that a run is saved before both end; so it is where this process is
    killed, on Linux.

    Args:
        arguments: what stands after `peftkit`.
        end_when: asked twice a second; once it says so, the command is told to stop in order.

    Returns:
        The command's exit status.

    Raises:
        Stopped: a signal came.
    """
    process = start_apart(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE if console.is_heard() else None)
    with _relayed(process), passing_on([process]) as came:
        told = False
        while True:
            try:
                status = process.wait(_LOOK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if not told and end_when():
                    process.terminate()
                    told = True
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
    """Start a `peftkit` command that is told to stop when this process is killed, on Linux."""
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    return subprocess.Popen(
        [sys.executable, "-m", "peftkit", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        process_group=0,  # Ctrl-C comes here alone, to be passed on once
        preexec_fn=(lambda: libc.prctl(_DIE_WITH_PARENT, signal.SIGTERM)) if libc else None,
    )


@contextlib.contextmanager
def _relayed(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Within the block, report what a process writes to its stderr, where that is a pipe."""
    if process.stderr is None:
        yield
        return
    with process.stderr as lines:
        reader = threading.Thread(target=_report, args=(lines,))
        reader.start()
        try:
            yield
        finally:
            reader.join()


def _report(lines: Iterable[bytes]) -> None:
    for line in lines:
        console.info(line.decode(errors="replace").rstrip())


def wait_for(folder: Path) -> None:
    """Wait for a process that still saves what it has trained: one whose parent was killed a moment ago."""
    if is_held(folder):
        console.info(f"waiting for the process that is at work in {folder}.")
    while is_held(folder):
        time.sleep(_LOOK_SECONDS)


@contextlib.contextmanager
def passing_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Hand signals to processes within the block; gives those that came."""
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)
        for process in processes:
            process.send_signal(number)

    before: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                with contextlib.suppress(ValueError):  # not the main thread
                    before[number] = signal.signal(number, handle)
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
