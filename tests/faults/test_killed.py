"""A run that is killed at any moment, and gone on with, ends as if it had never stopped."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from peftkit.storage import sha256_of_file
from peftkit.workflows.verify_run import verify_run

WEIGHTS = {"full": "model/model.safetensors", "lora": "adapter/adapter_model.safetensors"}
WEIGHTS["qlora"] = WEIGHTS["lora"]


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics without the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def unsound_parts(run: Path) -> list[str]:
    return [check.name for check in verify_run(run)[1] if not check.sound]


def is_saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*.part"))


@pytest.mark.parametrize(
    ("method", "kills"),
    [
        ("lora", 8),
        pytest.param("full", 34, marks=pytest.mark.faults),
        pytest.param("lora", 34, marks=pytest.mark.faults),
        pytest.param("qlora", 34, marks=pytest.mark.faults),
    ],
)
def test_a_run_killed_at_random_ends_in_the_same_bits(method: str, kills: int, forks: Any, work: Path) -> None:
    moments = random.Random(kills)
    command = ("train", "recipe.yaml", "--method", method, "--resume", "--output")
    begun = time.monotonic()
    status, log = forks.run(work, *command, "whole")
    seconds = time.monotonic() - begun
    assert status == 0, log
    wanted, wanted_metrics = sha256_of_file(work / "whole" / WEIGHTS[method]), metrics_of(work / "whole")

    killed = saving = resumed = 0
    while killed < kills:
        name = f"run-{resumed}"
        for _ in range(moments.randint(1, 4)):
            running = forks.start(work, *command, name)
            if killed % 2:  # every other one is killed while it saves
                running.wait_for(lambda: is_saving(work / name) or (work / name / "adapter").exists(), 20)  # noqa: B023
                time.sleep(moments.uniform(0, 0.02))
            else:
                time.sleep(moments.uniform(0, seconds))
            saving += is_saving(work / name)
            running.send(signal.SIGKILL)
            killed += running.ended() == -signal.SIGKILL
        status, log = forks.run(work, *command, name)
        resumed += 1
        assert status == 0, log
        assert sha256_of_file(work / name / WEIGHTS[method]) == wanted, log
        assert metrics_of(work / name) == wanted_metrics, log
        assert unsound_parts(work / name) == []
        assert not list((work / name).rglob(".*.part"))
    print(f"{method}: {killed} kills, {saving} of them while saving; {resumed} runs, all with the same weights")
    assert killed >= kills
