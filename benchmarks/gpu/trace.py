"""What the device and the host do during a few steps, as torch's profiler and its debug mode for waiting see it."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

__all__ = ["Event", "StepObserver", "Trace", "summarised"]

_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
"""Calls in which the host waits for the device. The clock and the profiler themselves wait by
`cudaDeviceSynchronize`, which is not among them."""

_CPU_WAITS = ("aten::_local_scalar_dense", "aten::nonzero")
"""Operators that would wait for a device if there were one."""

_WARNING = "synchronizing CUDA operation"
_LONGEST = 5
_GAP_NANOSECONDS = 10_000
"""The host needs about so long to launch a kernel; a shorter gap is no sign of waiting for it."""


@dataclass(frozen=True)
class Event:
    """A kernel, copy, operator or call of the runtime."""

    name: str
    on_device: bool
    start: int
    """In nanoseconds."""

    duration: int

    @property
    def end(self) -> int:
        """In nanoseconds."""
        return self.start + self.duration


@dataclass(frozen=True)
class Trace:
    """A few steps, summarised."""

    steps: int
    step_seconds: float
    """Wall clock of a step under the profiler."""

    host_seconds: float
    """Of a step, without the time in which the host waits for the device."""

    waits: float
    """Calls in a step in which the host waits for the device."""

    warned: float | None
    """Operators in a step of which torch warns that they wait; None without a GPU."""

    places: list[tuple[str, float]]
    """Where these are: file and line, and how often in a step."""

    idle_share: float | None
    """Of the time between the first and the last kernel, in which the device computes nothing; None without a GPU."""

    gaps: float | None
    """Pauses between kernels in a step that are longer than 10 microseconds."""

    longest: list[tuple[str, float]]
    """Kernels, or operators without a GPU, with their share of all time in them, the largest first."""


class StepObserver:
    """Profiles the steps between `start` and `stop`."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._profile: Any = None
        self._caught: Any = None
        self._warnings: list[warnings.WarningMessage] = []
        self._start = 0.0
        self.trace: Trace | None = None

    def start(self) -> None:
        """Begin to record."""
        gpu = torch.cuda.is_available()
        self._profile = profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU])
        self._profile.__enter__()
        self._caught = warnings.catch_warnings(record=True)
        self._warnings = self._caught.__enter__()
        warnings.simplefilter("always")
        if gpu:
            torch.cuda.set_sync_debug_mode("warn")
        self._start = time.perf_counter()

    def stop(self) -> None:
        """End, and summarise."""
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._start
        self._caught.__exit__(None, None, None)
        self._profile.__exit__(None, None, None)
        places = [_place(each) for each in self._warnings if _WARNING in str(each.message)] if gpu else None
        self.trace = summarised(_events(self._profile), self._steps, seconds, places)

    def to_json(self) -> dict[str, Any] | None:
        """The summary, if the steps were observed."""
        return asdict(self.trace) if self.trace else None


def summarised(events: Sequence[Event], steps: int, seconds: float, places: Sequence[str] | None) -> Trace:
    """Summarise the events of some steps.

    Args:
        events: in any order.
        steps: how many.
        seconds: that they took together.
        places: where torch warned that the host waits; None without a GPU.
    """
    kernels = sorted((event for event in events if event.on_device), key=lambda event: event.start)
    host = [event for event in events if not event.on_device]
    waits = [event for event in host if event.name in (_WAITS if kernels else _CPU_WAITS)]
    waited = sum(event.duration for event in waits) / 1e9 if kernels else 0.0
    idle, gaps = _idle(kernels) if kernels else (None, None)
    return Trace(
        steps=steps,
        step_seconds=seconds / steps,
        host_seconds=(seconds - waited) / steps,
        waits=len(waits) / steps,
        warned=None if places is None else len(places) / steps,
        places=[(place, count / steps) for place, count in Counter(places or ()).most_common(_LONGEST)],
        idle_share=idle,
        gaps=None if gaps is None else gaps / steps,
        longest=_longest(kernels or host),
    )


def _idle(kernels: Sequence[Event]) -> tuple[float, int]:
    """The share of time without a kernel, and the number of pauses; kernels of several streams may overlap."""
    end, busy, gaps = kernels[0].start, 0, 0
    for kernel in kernels:
        gaps += kernel.start - end > _GAP_NANOSECONDS
        busy += max(0, kernel.end - max(kernel.start, end))
        end = max(end, kernel.end)
    span = end - kernels[0].start
    return (1 - busy / span if span else 0.0), gaps


def _longest(events: Iterable[Event]) -> list[tuple[str, float]]:
    total: Counter[str] = Counter()
    for event in events:
        total[event.name] += event.duration
    everything = sum(total.values()) or 1
    return [(name, spent / everything) for name, spent in total.most_common(_LONGEST)]


def _events(recorded: Any) -> list[Event]:
    """What the profiler recorded, without the objects that torch makes of it, which take longer than the steps."""
    device = DeviceType.CUDA
    return [
        Event(event.name(), event.device_type() == device, event.start_ns(), event.duration_ns())
        for event in recorded.profiler.kineto_results.events()
        if not event.name().startswith("Optimizer.")  # a note around others, which the device has too
    ]


def _place(warning: warnings.WarningMessage) -> str:
    path = Path(warning.filename)
    return f"{path.parent.name}/{path.name}:{warning.lineno}"
