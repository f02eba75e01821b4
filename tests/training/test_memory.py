"""The peak that a process says is its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import psutil

from peftkit.planning.hardware import Hardware
from peftkit.training.memory import peak_memory_bytes

CPU = Hardware("cpu", "a CPU", 24 * 10**9, 1, 2)
SAYS_ITS_PEAK = """
from peftkit.planning.hardware import Hardware
from peftkit.training.memory import peak_memory_bytes
print(peak_memory_bytes(Hardware("cpu", "a CPU", 24 * 10**9, 1, 2)))
"""


def _peak_of_a_process() -> int:
    command = [sys.executable, "-c", SAYS_ITS_PEAK]
    root = Path(__file__).resolve().parents[2]
    return int(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)


def test_the_peak_stays_when_memory_is_given_back() -> None:
    before = peak_memory_bytes(CPU)
    held = numpy.ones(before + 200_000_000, dtype=numpy.uint8)
    del held

    assert psutil.Process().memory_info().rss < before + 100_000_000
    assert peak_memory_bytes(CPU) > before + 200_000_000


def test_the_peak_of_a_process_does_not_begin_with_that_of_the_one_that_started_it() -> None:
    alone = _peak_of_a_process()
    held = numpy.ones(alone + 500_000_000, dtype=numpy.uint8)

    peak = _peak_of_a_process()

    assert held.nbytes > 1.5 * alone
    assert peak < 1.3 * alone
