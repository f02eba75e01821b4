"""Processes for jobs: each runs one function and ends, so that neither memory nor faults reach the next.

Importing torch, Transformers and PEFT takes ten seconds. Without a GPU, processes are forked from a server that has
imported them. A process that was forked after CUDA was touched cannot use it, and an import may touch it, so with a GPU
processes are new ones that import while earlier jobs still run, and wait.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.gpu.harness import JobError

__all__ = ["Workers", "has_gpu"]

_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
_LIBRARIES = (
    "torch",
    "transformers",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "peft",
    "datasets",
    "bitsandbytes",
    "peftkit.cli.app",
    "peftkit.training.run",
    "peftkit.training.together",
    "peftkit.adapters.merge",
    "benchmarks.contenders",
)
_LOG_CHARACTERS = 4000
_LEAVE_SECONDS = 3
_DUMP_SECONDS = 0.3


def has_gpu() -> bool:
    """Whether the machine has a GPU, found without a library, as that could touch CUDA."""
    return any(Path(device).exists() for device in _DEVICES)


class Workers:
    """Runs jobs in processes of their own; see `benchmarks.gpu.harness.Pool`. Close it, or processes are left."""

    def __init__(self, folder: Path, spare: int, libraries: Sequence[str] = _LIBRARIES) -> None:
        """Prepare `spare` processes, which import `libraries`, ahead of the jobs; they write their logs to `folder`."""
        self._folder = folder
        self._libraries = tuple(libraries)
        self._context: Any = multiprocessing.get_context("spawn" if has_gpu() else "forkserver")
        if not has_gpu():
            self._context.set_forkserver_preload(list(libraries))
        self._count = 0
        self._lock = threading.Lock()
        self._spare: list[_Worker] = []
        self._all: list[_Worker] = []
        for _ in range(spare):
            self._spare.append(self._new())

    def call(self, target: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """What the function `module:function` returns in a process of its own.

        Raises:
            JobError: it raised, its process died, or it took longer.
        """
        with self._lock:
            worker = self._spare.pop(0) if self._spare else self._new()
            self._spare.append(self._new())
        try:
            return worker.call(target, arguments, seconds)
        finally:
            worker.end()

    def close(self) -> None:
        """End every process that was started."""
        for worker in self._all:
            worker.end()

    def _new(self) -> _Worker:
        self._count += 1
        worker = _Worker(self._context, self._folder / f"worker-{self._count}.log", self._libraries)
        self._all.append(worker)
        return worker


class _Worker:
    """A process that waits for one job."""

    def __init__(self, context: Any, log: Path, libraries: Sequence[str]) -> None:
        self._log = log
        self._answered = False
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, str(log), libraries))
        self._process.start()
        other.close()

    def call(self, target: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        self._connection.send((target, dict(arguments)))
        if not self._connection.poll(max(0.0, seconds)):
            self._say_where_it_is()
            raise JobError(f"{target} did not finish within {seconds:.0f} s", self._tail())
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"status {code}"
            raise JobError(f"the process of {target} ended with {how}", self._tail()) from None
        self._answered = True
        if "error" in answer:
            raise JobError(answer["error"], answer["traceback"])
        return answer["value"]

    def _say_where_it_is(self) -> None:
        """Let it write the stacks of its threads to its log."""
        if self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGUSR1)
            time.sleep(_DUMP_SECONDS)

    def end(self) -> None:
        """End it with everything that it started, by force unless it has answered and ends by itself."""
        pid = self._process.pid
        if self._answered:
            self._process.join(_LEAVE_SECONDS)
        if pid is not None and self._process.exitcode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            return self._log.read_text(encoding="utf-8", errors="replace")[-_LOG_CHARACTERS:]
        return ""


def _serve(connection: Connection, log: str, libraries: Sequence[str]) -> None:
    """Import the libraries, wait for a job, run it and answer."""
    os.setsid()  # what the job starts ends with it
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=False)
    for library in libraries:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    try:
        target, arguments = connection.recv()
    except EOFError:  # the benchmark has ended
        return
    try:
        module, _, name = target.partition(":")
        answer = {"value": getattr(importlib.import_module(module), name)(**arguments)}
    except BaseException as error:  # noqa: BLE001  it is passed on
        text = " ".join(str(error).split())
        answer = {"error": f"{type(error).__name__}: {text}"[:500], "traceback": traceback.format_exc()}
    connection.send(answer)
