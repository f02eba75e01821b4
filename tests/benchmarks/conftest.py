"""What the tests of the benchmarks share: a machine, a bench without processes, and parts that are quick."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.harness import Bench
from benchmarks.gpu.shapes import SMOKE

MACHINE: dict[str, Any] = {
    "device": "cuda",
    "name": "NVIDIA H100 80GB HBM3",
    "memory_bytes": 80 * 10**9,
    "cpu_cores": 16,
    "peak_flops": 989.5e12,
    "python": "3.12.3",
    "versions": {"torch": "2.11.0", "trl": None},
    "date": "2026-11-27",
}


class NoPool:
    """Jobs that no test of the harness runs."""

    def call(self, target: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """Show what was asked for."""
        return target, dict(arguments), seconds


@pytest.fixture
def machine() -> dict[str, Any]:
    """An H100, as `benchmarks.gpu.device:machine` describes it."""
    return dict(MACHINE)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A bench with a minute left."""
    return Bench(SMOKE, MACHINE, tmp_path, NoPool(), deadline=time.monotonic() + 60)
