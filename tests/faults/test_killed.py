"""A run that is killed at any moment, and gone on with, ends as if it had never stopped."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

KILLS = int(os.environ.get("PEFTKIT_KILLS", "34"))
"""For each method where there is time."""


def is_saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*.part"))


@pytest.mark.parametrize(
    ("method", "kills"),
    [
        ("lora", 3),
        pytest.param("full", KILLS, marks=[pytest.mark.faults, pytest.mark.timeout(3600)]),
        pytest.param("lora", KILLS, marks=[pytest.mark.faults, pytest.mark.timeout(3600)]),
        pytest.param("qlora", KILLS, marks=[pytest.mark.faults, pytest.mark.timeout(3600)]),
    ],
)
def test_a_run_killed_at_random_ends_in_the_same_bits(method: str, kills: int, work: Any, undisturbed: Any) -> None:
    expected = undisturbed(method)
    moments = random.Random(f"{method} {kills}")
    begun = time.monotonic()
    status, log = work.train("whole", "--method", method)
    seconds = time.monotonic() - begun
    assert (status, work.result("whole", method)) == (0, expected), log

    killed = saving = resumed = 0
    while killed < kills:
        name = f"run-{resumed}"
        for _ in range(moments.randint(1, 4)):
            running = work.start("train", "recipe.yaml", "--method", method, "--resume", "--output", name)
            if killed % 2:  # every other one is killed while it saves
                running.wait_for(lambda: is_saving(work.path / name))  # noqa: B023
                time.sleep(moments.uniform(0, 0.02))
            else:
                time.sleep(moments.uniform(0, seconds))
            saving += is_saving(work.path / name)
            running.send(signal.SIGKILL)
            killed += running.ended() == -signal.SIGKILL
        status, log = work.train(name, "--method", method, "--resume")
        resumed += 1
        assert status == 0, log
        assert work.result(name, method) == expected, log
        assert work.leftovers(name) == []
    print(f"{method}: {killed} kills, {saving} of them while saving; {resumed} runs, all with the same weights")
    assert killed >= kills
