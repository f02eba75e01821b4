"""What is made of a profile: how long the device was idle, how often the host waited, and for what."""

from __future__ import annotations

import pytest

from benchmarks.gpu.trace import Event, StepObserver, summarised

KERNELS = [
    Event("matmul", True, 0, 40_000),
    Event("copy", True, 20_000, 30_000),  # on another stream
    Event("matmul", True, 55_000, 5_000),  # the pause before it is shorter than a launch takes
    Event("norm", True, 80_000, 20_000),
]
HOST = [
    Event("cudaLaunchKernel", False, 0, 5_000),
    Event("cudaStreamSynchronize", False, 60_000, 30_000),
    Event("cudaDeviceSynchronize", False, 99_000, 1_000),  # the clock's own
]


def test_idle_time_is_what_no_kernel_of_any_stream_covers() -> None:
    trace = summarised([*HOST, *KERNELS], steps=2, seconds=100e-6, places=[])

    assert trace.idle_share == pytest.approx(1 - 75 / 100)
    assert trace.gaps == 0.5


def test_the_host_works_while_it_does_not_wait_for_the_device() -> None:
    trace = summarised([*KERNELS, *HOST], steps=2, seconds=100e-6, places=["a/b.py:1", "a/b.py:1", "c/d.py:2"])

    assert trace.waits == 0.5
    assert trace.host_seconds == pytest.approx(35e-6)
    assert trace.warned == 1.5
    assert trace.places == [("a/b.py:1", 1.0), ("c/d.py:2", 0.5)]


def test_the_longest_kernels_come_first_with_their_shares() -> None:
    trace = summarised(KERNELS, steps=1, seconds=1.0, places=[])

    assert [name for name, _ in trace.longest] == ["matmul", "copy", "norm"]
    assert [share for _, share in trace.longest] == pytest.approx([45 / 95, 30 / 95, 20 / 95])


def test_without_a_gpu_operators_stand_for_kernels_and_nothing_is_idle() -> None:
    events = [Event("aten::mm", False, 0, 10), Event("aten::_local_scalar_dense", False, 10, 1)]

    trace = summarised(events, steps=1, seconds=1.0, places=None)

    assert (trace.idle_share, trace.gaps, trace.warned) == (None, None, None)
    assert trace.waits == 1
    assert trace.longest[0][0] == "aten::mm"


def test_an_observer_profiles_what_runs_between_its_start_and_its_stop() -> None:
    import torch

    observer = StepObserver(steps=1)

    observer.start()
    float(torch.ones(8, 8).mm(torch.ones(8, 8)).sum())
    observer.stop()

    assert observer.trace is not None
    assert observer.trace.waits == 1
    assert "aten::mm" in {name for name, _ in observer.trace.longest}
