"""A run that is told to stop finishes the step and saves it; told twice, it stops at once."""

from __future__ import annotations

import os
import pty
import random
import signal
import sys
import time
from typing import Any

import pytest

SLOW_STEP = (
    "training.gradient_accumulation_steps=160", "training.max_steps=2", "training.save_strategy=no",
    "training.eval_strategy=no", "data.validation=null",
)  # fmt: skip
"""A step that takes seconds, so that a signal falls into the middle of it."""


def in_a_slow_step(work: Any) -> Any:
    """A run in the middle of its first step of two."""
    work.write_training_rows(4 * 160)
    settings = [word for change in SLOW_STEP for word in ("--set", change)]
    command = work.start("train", "recipe.yaml", "--output", "run", *settings)
    command.wait_for(lambda: "parameters are trained" in command.log)
    time.sleep(0.7)
    return command


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.faults),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.faults),
    ],
)
def test_a_signal_lets_the_step_end_and_saves_it(
    number: signal.Signals, status: int, work: Any, undisturbed: Any
) -> None:
    running = work.begin("run")
    running.send(number)

    assert running.ended() == status, running.log
    assert f"{number.name}: the step is finished and saved first" in running.log
    assert "Go on with: peftkit train run --resume" in running.log
    assert work.manifest("run")["status"] == "stopped"
    assert work.leftovers("run") == []
    assert work.run("train", "run", "--resume")[0] == 0
    assert work.result("run") == undisturbed("lora")


@pytest.mark.faults
def test_signals_at_random_moments_cost_nothing(work: Any, undisturbed: Any) -> None:
    chance = random.Random(6)
    begun = time.monotonic()
    assert work.train("whole")[0] == 0
    seconds = time.monotonic() - begun

    stops = runs = 0
    while stops < 20:
        name = f"run-{runs}"
        running = work.start("train", "recipe.yaml", "--output", name)
        while True:
            time.sleep(chance.uniform(0, seconds))
            running.send(chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
            status = running.ended()
            if status == 0:
                break
            stops += 1
            assert status in (-15, -1, 129, 130, 143), running.log
            running = work.start("train", "recipe.yaml", "--output", name, "--resume")
        runs += 1
        assert work.result(name) == undisturbed("lora"), running.log
    print(f"{stops} signals, {runs} runs, all with the same weights")


def test_a_signal_in_the_middle_of_an_accumulation_waits_for_the_step(work: Any) -> None:
    running = in_a_slow_step(work)
    running.send(signal.SIGTERM)

    assert running.ended() == 143, running.log
    assert "stopped after step 1 of 2, which is saved" in running.log
    assert [path.name for path in work.checkpoints("run")] == ["step-1"]


def test_a_second_signal_stops_at_once(work: Any) -> None:
    running = in_a_slow_step(work)
    running.send(signal.SIGINT)
    running.wait_for(lambda: "SIGINT: the step is finished" in running.log)
    begun = time.monotonic()
    running.send(signal.SIGINT)
    status = running.ended()

    assert status == 130
    assert time.monotonic() - begun < 1
    assert "SIGINT again: stopped at once" in running.log
    assert work.checkpoints("run") == []


@pytest.mark.faults
def test_after_a_second_signal_the_run_can_be_gone_on_with(work: Any, undisturbed: Any) -> None:
    running = work.begin("run")
    running.send(signal.SIGINT)
    running.send(signal.SIGTERM)

    assert running.ended() in (130, 143), running.log
    assert work.train("run", "--resume")[0] == 0
    assert work.result("run") == undisturbed("lora")


@pytest.mark.faults
def test_a_closed_terminal_stops_the_run_in_order(work: Any, undisturbed: Any) -> None:
    child, terminal = pty.fork()
    if not child:
        os.chdir(work.path)
        os.execv(sys.executable, [sys.executable, "-m", "peftkit", "train", "recipe.yaml", "--output", "run"])
    while not work.checkpoints("run"):
        time.sleep(0.001)
    os.close(terminal)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 129
    assert work.manifest("run")["status"] == "stopped"
    assert work.train("run", "--resume")[0] == 0
    assert work.result("run") == undisturbed("lora")
