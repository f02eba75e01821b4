"""Trackers that Transformers knows are told of a run, and what they write stands in its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
scalars = EventAccumulator(sys.argv[1]).Reload().Scalars("train/loss")
print(json.dumps([[event.step, event.value] for event in scalars]))
"""


@pytest.mark.slow
def test_tensorboard_has_the_losses_of_the_run(
    peftkit: Callable[..., subprocess.CompletedProcess[str]], recipe_path: Path, tmp_path: Path
) -> None:
    done = peftkit("train", str(recipe_path), "--output", "out", "--set", "training.report_to=tensorboard")

    assert done.returncode == 0, done.stderr
    read = subprocess.run([sys.executable, "-c", READ, str(tmp_path / "out" / "tensorboard")], capture_output=True)
    told = dict(json.loads(read.stdout))
    lines = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert told == pytest.approx(losses, abs=1e-5)
    assert peftkit("verify", "out").returncode == 0
