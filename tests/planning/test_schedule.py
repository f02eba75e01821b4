"""Steps, evaluations and checkpoints are counted as the Trainer counts them."""

from __future__ import annotations

from typing import Any

import pytest

from peftkit.planning.plan import Schedule
from peftkit.recipe.hyperparameters import Training


def schedule(sequences: int | None = 100, **training: Any) -> Schedule:
    return Schedule(Training.model_validate(training), sequences)


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"per_device_train_batch_size": 8, "num_train_epochs": 3}, 39),
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "num_train_epochs": 1}, 4),
        ({"per_device_train_batch_size": 10, "num_train_epochs": 0.5}, 5),
        ({"per_device_train_batch_size": 8, "max_steps": 7}, 7),
    ],
)
def test_the_steps_of_a_run(training: dict[str, Any], steps: int) -> None:
    assert schedule(**training).steps == steps


def test_a_stream_is_one_epoch_of_the_steps_it_is_given() -> None:
    stream = schedule(None, max_steps=20)

    assert (stream.steps, stream.steps_per_epoch, stream.epochs) == (20, 20, 1.0)


@pytest.mark.parametrize(
    ("training", "evaluations", "saves"),
    [
        ({"eval_strategy": "no", "save_strategy": "no"}, 0, 0),
        ({"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 3}, 3, 3),
        ({"eval_strategy": "steps", "eval_steps": 10, "save_strategy": "steps", "save_steps": 12}, 3, 4),
        ({"eval_strategy": "steps", "logging_steps": 20, "save_strategy": "steps", "save_steps": 0.5}, 1, 2),
    ],
)
def test_how_often_a_run_evaluates_and_saves(training: dict[str, Any], evaluations: int, saves: int) -> None:
    found = schedule(**{"num_train_epochs": 3, **training})

    assert (found.evaluations, found.saves) == (evaluations, saves)
