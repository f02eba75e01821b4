"""The whole GPU benchmark in tiny shapes: every part is there, and none has failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.registry import PARTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_benchmark_in_tiny_shapes_is_complete_and_nothing_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--output", str(tmp_path), "--budget", "800"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    failed = {part["part"]: part["reason"] for part in found["parts"] if part["status"] != "passed"}
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert failed == {}
    assert done.returncode == 0, done.stderr
    assert [part["part"] for part in found["parts"]] == [part.name for part in PARTS]
    assert all(part["rows"] for part in found["parts"])
    assert all(f"## {part.title}" in table for part in PARTS)
    assert {goal["status"] for goal in found["goals"]} == {"not measured"}


def test_an_unknown_part_is_refused_by_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", "lose", "--output", str(tmp_path)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "there is no part lose; there are: loss, quickstart" in done.stderr
