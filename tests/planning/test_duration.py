"""The time of a run, and how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from peftkit.planning.plan import Schedule, duration
from peftkit.recipe.hyperparameters import Training

SCHEDULE = Schedule(
    Training(per_device_train_batch_size=1, num_train_epochs=2, eval_strategy="epoch", save_strategy="epoch"), 50
)


def test_steps_evaluations_and_checkpoints_add_up() -> None:
    found = duration(SCHEDULE, (1.0, 3.0), evaluation_seconds=10, save_seconds=5)

    assert found.seconds == pytest.approx(100 * 2 + 2 * 10 + 2 * 5)


def test_equal_steps_leave_nothing_to_doubt_and_one_step_everything() -> None:
    assert duration(SCHEDULE, (2.0, 2.0, 2.0)).high == pytest.approx(200)
    assert duration(SCHEDULE, (2.0,)).high is None


def test_the_interval_holds_the_time_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.normal(1.0, 0.2, 108) for _ in range(1000)]
    found = [(duration(SCHEDULE, steps[:8].tolist()), steps[8:].sum()) for steps in runs]

    held = np.mean([time.low is not None and time.low <= total <= (time.high or 0) for time, total in found])

    assert 0.93 <= held <= 0.97
