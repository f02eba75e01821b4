"""Steps, time and disk space of a run, as the Trainer counts and writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

from peftkit.planning.plan import DiskNeed, Schedule, disk_need, duration
from peftkit.recipe.hyperparameters import Training
from peftkit.training.checkpoint import write_values


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


SHAPES = ((1500, 1000), (768, 16), (1000,))
TRAINABLE = 1500 * 1000 + 768 * 16 + 1000
OTHER_BYTES = disk_need(Schedule(Training(), None), 0).checkpoint_bytes
"""What is always added, for files that are no weights."""

OPTIMIZERS = (
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_bnb_8bit",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
    "lion_32bit",
)
Weigh = Callable[[str], int]


@pytest.fixture
def weigh(tmp_path: Path) -> Weigh:
    """The bytes of trained weights and of the state of Transformers' optimizer for them, as a checkpoint has them."""

    def write(optim: str) -> int:
        weights = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(tmp_path, optim=optim, use_cpu=True))
        optimizer = kind(weights, **settings)
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        write_values(tmp_path / "optimizer", optimizer.state_dict())
        save_file({str(index): weight.detach() for index, weight in enumerate(weights)}, tmp_path / "weights")
        return sum((tmp_path / name).stat().st_size for name in ("weights", "optimizer"))

    return write


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_checkpoint_takes_no_more_than_is_said_and_not_much_less(optim: str, weigh: Weigh) -> None:
    said = disk_need(Schedule(Training(optim=optim), None), TRAINABLE).checkpoint_bytes

    found = weigh(optim)

    assert found <= said
    assert said - OTHER_BYTES <= 1.02 * found


def test_less_is_said_of_an_optimizer_that_keeps_less() -> None:
    names = ("adamw_torch", "lion_32bit", "adamw_bnb_8bit", "sgd")
    said = [disk_need(Schedule(Training(optim=optim), None), 10**8).checkpoint_bytes for optim in names]

    assert said == sorted(said, reverse=True)
    assert len(set(said)) == 4


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_what_is_said_grows_with_the_trained_weights_evenly(optim: str) -> None:
    none, some, twice = (disk_need(Schedule(Training(optim=optim), None), count) for count in (0, 10**6, 2 * 10**6))

    assert twice.checkpoint_bytes - some.checkpoint_bytes == some.checkpoint_bytes - none.checkpoint_bytes
    assert twice.output_bytes - some.output_bytes == 4 * 10**6


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_the_output_is_the_weights_without_a_state(optim: str) -> None:
    need = disk_need(Schedule(Training(optim=optim), None), TRAINABLE)

    assert need.output_bytes == disk_need(Schedule(Training(), None), TRAINABLE).output_bytes
    assert 4 * TRAINABLE < need.output_bytes <= need.checkpoint_bytes


def test_a_run_that_saves_nothing_takes_its_output_alone() -> None:
    need = disk_need(Schedule(Training(save_strategy="no"), None), TRAINABLE)

    assert need.checkpoints == 0
    assert need.total == need.output_bytes


@given(checkpoint=st.integers(0, 10**12), count=st.integers(0, 50), output=st.integers(0, 10**12))
def test_the_total_is_every_checkpoint_and_the_output(checkpoint: int, count: int, output: int) -> None:
    assert DiskNeed(checkpoint, count, output).total == checkpoint * count + output
