"""Optimizer steps take until the device has computed them, and the time between steps does not count."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from peftkit.training.checkpoint import Progress
from peftkit.training.steps import StepClock

CPU = torch.device("cpu")


@dataclass
class Time:
    """Seconds that pass when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def progress() -> Progress:
    return Progress("0123456789abcdef")


@pytest.fixture
def clock(time: Time, progress: Progress) -> StepClock:
    return StepClock(progress, CPU, time)


def test_a_step_counts_until_it_has_been_waited_for(clock: StepClock, time: Time, progress: Progress) -> None:
    clock.start()
    time.now += 0.25

    clock.lap()

    assert progress.step_seconds == 0.25


def test_what_is_computed_after_the_wait_counts_with_the_next_step(
    clock: StepClock, time: Time, progress: Progress
) -> None:
    clock.start()
    time.now += 1
    clock.lap()
    time.now += 2  # of the optimizer

    clock.start()
    time.now += 4
    clock.lap()

    assert progress.step_seconds == 7


def test_between_the_end_of_a_step_and_the_start_of_another_no_time_counts(
    clock: StepClock, time: Time, progress: Progress
) -> None:
    clock.start()
    time.now += 1
    clock.lap()
    time.now += 2
    clock.stop()
    time.now += 100  # an evaluation

    clock.start()
    time.now += 4
    clock.lap()

    assert progress.step_seconds == 7


def test_a_clock_that_stands_still_counts_nothing(clock: StepClock, time: Time, progress: Progress) -> None:
    clock.stop()
    time.now += 1
    clock.lap()

    assert progress.step_seconds == 0


def test_time_is_added_to_what_a_run_had_before_it_was_resumed(
    clock: StepClock, time: Time, progress: Progress
) -> None:
    progress.step_seconds = 60

    clock.start()
    time.now += 1
    clock.stop()

    assert progress.step_seconds == 61
