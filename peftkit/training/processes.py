"""The processes that train one model together: they meet at a store, exchange values, and stop or end as one.

What they exchange before and after training goes through the launcher's store: a process that waits there notices at
once that another one has failed, which it would not in a process group's barrier, and waits without a timeout while
another one tokenizes. Gradients, and the few numbers that a step needs from all processes, go through torch's process
group. A signal ends a run between two steps, with everything saved, or at once when it comes again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from types import FrameType
from typing import Any, Final

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from peftkit import console
from peftkit.errors import PeerError, PeftkitError, RunError, Stopped
from peftkit.planning.hardware import Hardware
from peftkit.planning.processes import Place
from peftkit.redaction import redact

__all__ = [
    "ALONE", "NEVER", "SIGNALS", "Processes", "StopRequest", "handling", "joined", "shared_store",
    "stopping_at_signals",
]  # fmt: skip

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler's request, and a terminal that was closed."""

_PREFIX = "peftkit"
_END = "end"  # how the run has ended
_LOOK_SECONDS = 0.05
_REASON_SECONDS = 2.0
"""How long a process that has lost another one waits for the reason."""


@dataclass(frozen=True)
class Processes(Place):
    """This process among those of its run; by default it is the only one."""

    store: Any = None

    @property
    def are_many(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def publish(self, name: str, value: Any) -> None:
        """Make a JSON value available to the other processes."""
        if self.are_many:
            self.store.set(name, json.dumps(value))

    def wait_for(self, name: str) -> Any:
        """Wait for a value that another process publishes, without a timeout.

        Raises:
            PeerError: another process has ended the run instead.
        """
        while not self.store.check([name]):
            if end := self._end(_LOOK_SECONDS):
                raise PeerError(end["what"], end["status"])
        return json.loads(self.store.get(name))

    def agreed(self, name: str, value: Any) -> Any:
        """The main process's value, a JSON one, which all others take."""
        if self.store is None:  # the only process, or one of a plan
            return value
        if self.is_main:
            self.publish(name, value)
        return self.wait_for(name)

    @contextlib.contextmanager
    def first_on_machine(self, name: str) -> Iterator[None]:
        """Run a block in one process of each machine before the others, which find its results in the cache.

        Raises:
            PeerError: the first one has failed.
        """
        if self.store is None:  # the only process, or one of a plan
            yield
            return
        machine = f"{name}-{self.rank - self.local_rank}"
        if self.local_rank:
            self.wait_for(machine)
        yield
        self.publish(machine, None)

    def connect(self, hardware: Hardware, timeout_seconds: float | None = None) -> None:
        """Open the process group: NCCL between GPUs, gloo between CPUs.

        A process that does not answer for `timeout_seconds` counts as lost; None is torch's default for the backend.
        """
        if self.are_many and not distributed.is_initialized():
            self.publish(f"ready-{self.rank}", None)
            for rank in range(self.count):  # a failure is noticed at the store, and not in the group
                self.wait_for(f"ready-{rank}")
            distributed.init_process_group(
                "cuda:nccl,cpu:gloo" if hardware.device == "cuda" else "gloo",
                store=self.store,
                rank=self.rank,
                world_size=self.count,
                timeout=None if timeout_seconds is None else timedelta(seconds=timeout_seconds),
            )

    def device(self, hardware: Hardware) -> str:
        """The device of this process, as torch names it."""
        return f"cuda:{self.local_rank}" if self.are_many and hardware.device == "cuda" else hardware.device

    def sums(self, *values: float) -> list[float]:
        """The sum of each value over all processes."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def largest(self, value: float) -> float:
        """The largest value of all processes."""
        return self._reduced((value,), distributed.ReduceOp.MAX)[0]

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if not self.are_many:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def draw_apart(self) -> None:
        """From here on, draw other random numbers than the other processes, which have drawn the same so far."""
        if self.are_many:
            torch.manual_seed(int(torch.randint(2**62, ())) + self.rank)

    def of_main(self, value: Any) -> Any:
        """The value of the main process."""
        return self.gathered(value)[0] if self.are_many else value

    @contextlib.contextmanager
    def ending_as_one(self) -> Iterator[None]:
        """End the run in all processes at an error in the block: the process that fails first reports it, alone.

        Raises:
            PeerError: another process has ended the run.
            RunError: another process was lost.
        """
        try:
            yield
        except BaseException as error:
            if not self.are_many or isinstance(error, PeerError):
                raise
            ending = self._ending(error)
            if ending is error:
                raise
            raise ending from error

    def _reduced(self, values: tuple[float, ...], how: Any) -> list[float]:
        if not self.are_many:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, how)
        reduced: list[float] = tensor.tolist()
        return reduced

    def _ending(self, error: BaseException) -> BaseException:
        """The error to raise in this process, once the others can find out about it."""
        lost = isinstance(error, distributed.DistError) or (
            type(error) is RuntimeError and "gloo" in str(error).lower()
        )
        end = self._end(_REASON_SECONDS if lost else 0.0)
        if end and end["rank"] != self.rank:
            return PeerError(end["what"], end["status"])
        if isinstance(error, Stopped | KeyboardInterrupt):
            return error  # the others stop after the same step
        if lost:
            remedy = "What was saved is whole: resume with --resume."
            error = RunError("another process of the run was lost.", where="training", remedy=remedy)
        first = self.end(str(error), error.exit_status if isinstance(error, PeftkitError) else 1)
        if first["rank"] != self.rank:
            return PeerError(first["what"], first["status"])
        console.speak()
        return error

    def end(self, what: str, status: int) -> dict[str, Any]:
        """Record how the run has ended, and return the first record, which may be that of another process."""
        end = {"rank": self.rank, "status": status, "what": redact(what)}
        with contextlib.suppress(distributed.DistError):  # the store may have ended with its process
            end = json.loads(self.store.compare_set(_END, "", json.dumps(end)))
        return end

    def _end(self, seconds: float) -> dict[str, Any] | None:
        """How the run has ended; None if that is not recorded within `seconds`."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(distributed.DistError):
            while not (ended := self.store.check([_END])) and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
            if ended:
                end: dict[str, Any] = json.loads(self.store.get(_END))
                return end
        return None


ALONE = Processes()
"""The only process of a run."""


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes of a launcher, if there are any; on GPUs, this process then has one of its own."""
    processes = Processes.from_environment()
    if not processes.are_many:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(processes.local_rank % torch.cuda.device_count())
    store, _, _ = next(rendezvous("env://"))
    processes = replace(processes, store=shared_store(store))
    with processes.ending_as_one():
        yield processes
    if processes.is_main:
        processes.end("nothing is left to do.", 0)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def shared_store(store: Any) -> Any:
    """The part of a launcher's store that peftkit uses."""
    return PrefixStore(_PREFIX, store)


class StopRequest:
    """Whether a signal asks a run to stop: after the step while it trains, at once otherwise."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that was received, if any."""

        self._training = False
        self._before_leaving: Callable[[], None] = lambda: None
        self._process = os.getpid()

    @contextlib.contextmanager
    def between_steps(self, before_leaving: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Within the block, the first signal only sets `number`, which the training loop reads between steps.

        A second one ends the process at once, after `before_leaving`.
        """
        self._training, self._before_leaving = True, before_leaving
        try:
            yield
        finally:
            self._training, self._before_leaving = False, lambda: None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: request the end of the run, or end the process at a second one."""
        del frame
        if os.getpid() != self._process:  # a worker that was forked with this handler; the run ends it
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        name = signal.Signals(number).name
        if self.number is not None:
            self._before_leaving()
            console.info(f"{name} again: stopped at once; the newest checkpoint is still there.")
            os._exit(128 + number)
        self.number = number
        if not self._training:
            raise Stopped(number, f"stopped by {name}.")
        console.info(f"{name}: the step is finished and saved first. Once more, and it stops at once.")


NEVER: Final = StopRequest()
"""For a run that no signal stops."""


@contextlib.contextmanager
def stopping_at_signals() -> Iterator[StopRequest]:
    """Within the block, SIGINT, SIGTERM and SIGHUP stop the run, with its steps saved."""
    request = StopRequest()
    with handling(request.handle):
        yield request


@contextlib.contextmanager
def handling(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block, SIGINT, SIGTERM and SIGHUP call `handle`.

    Only the main thread can take signals; in another one, nothing changes. A signal that was ignored when the process
    started, as `nohup` does with SIGHUP, stays ignored.
    """
    before: dict[signal.Signals, Any] = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                with contextlib.suppress(ValueError):
                    before[number] = signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
