"""A checkpoint is whole or not there, and whoever goes on from it takes the very steps that would have come."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

from peftkit.runs.folder import PROGRESS_NAME, Checkpoint, checkpoint_place, find_checkpoints
from peftkit.storage import MANIFEST_NAME, write_json
from peftkit.training.checkpoint import (
    CheckpointWriter,
    Progress,
    random_state,
    read_randoms,
    read_values,
    restore_states,
    set_random_state,
    write_states,
    write_values,
)
from peftkit.training.weights import Weights

RUN, OTHER_RUN = "0123456789abcdef", "fedcba9876543210"
WEIGHTS = "adapter_model.safetensors"
WHOLE = Weights(None)  # of a process that holds them all


@dataclass(frozen=True)
class Training:
    """Weights with what trains them."""

    weights: torch.nn.Parameter
    optimizer: torch.optim.AdamW
    scheduler: LambdaLR

    @classmethod
    def begin(cls, rate: float = 0.1, schedule: Callable[[int], float] | None = None, decay: float = 0.01) -> Training:
        """From the same weights each time; with Transformers' linear schedule, or one of the test."""
        weights = torch.nn.Parameter(torch.linspace(-2, 2, 15).reshape(3, 5))
        optimizer = torch.optim.AdamW([weights], lr=rate, weight_decay=decay)
        scheduler = LambdaLR(optimizer, schedule) if schedule else get_linear_schedule_with_warmup(optimizer, 2, 20)
        return cls(weights, optimizer, scheduler)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def steps(self, count: int) -> list[float]:
        """Take some steps towards zero; the learning rate of each."""
        taken = []
        for _ in range(count):
            taken.append(self.rate)
            self.weights.grad = 2 * self.weights.detach()
            self.optimizer.step()
            self.scheduler.step()
        return taken

    def save(self, folder: Path) -> None:
        """Write all of its states."""
        write_states(folder, self.optimizer.state_dict(), self.scheduler, None, [])

    def restored(self, other: Training, folder: Path, *, adopt: bool) -> Training:
        """It, with the weights of another one and the states that this other one writes."""
        with torch.no_grad():
            self.weights.copy_(other.weights)
        other.save(folder)
        restore_states(folder, WHOLE, self.optimizer, self.scheduler, None, adopt=adopt)
        return self


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[CheckpointWriter]:
    """Writes checkpoints of a run into the test's folder, and keeps two."""
    writer = CheckpointWriter(tmp_path / "checkpoints", RUN, keep=2)
    yield writer
    writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a law."""
    return tmp_path_factory.mktemp("progress")


@pytest.fixture(autouse=True)
def _random_numbers_go_on_as_they_were() -> Iterator[None]:
    state = random_state()
    yield
    set_random_state(state)


def fill(folder: Path, run_id: str = RUN) -> None:
    """Write what a run does, but small files."""
    (folder / WEIGHTS).write_bytes(bytes(range(48)))
    write_json(folder / PROGRESS_NAME, {"run_id": run_id})


def fill_half(folder: Path, error: BaseException) -> None:
    """Fail with an error when half of the files are written."""
    (folder / WEIGHTS).write_bytes(bytes(range(24)))
    raise error


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def numbers() -> list[float]:
    """The next random numbers of each kind."""
    return [random.random(), random.gauss(0, 1), *np.random.rand(3), *np.random.randn(1), *torch.randn(5).tolist()]


def test_progress_is_read_as_it_was_written(tmp_path: Path) -> None:
    progress = Progress(RUN, 123, 1.5, 2.5, 10**12, 19.25, 1, 3, 0.5, [0.1 + 0.2, 0.5], 7)

    progress.write(tmp_path)

    assert Progress.read(Checkpoint(3, tmp_path)) == progress
    assert names(tmp_path) == {PROGRESS_NAME}


@given(
    seconds=st.floats(0, allow_infinity=False),
    loss=st.floats(allow_nan=False, allow_infinity=False),
    perplexity=st.none() | st.floats(1, allow_infinity=False),
)
@settings(max_examples=40)  # each of them waits for the disk
def test_the_numbers_of_progress_are_read_exactly(
    folder: Path, seconds: float, loss: float, perplexity: float | None
) -> None:
    progress = Progress(RUN, train_seconds=seconds, unlogged_losses=[loss], base_perplexity=perplexity)

    progress.write(folder)

    assert Progress.read(Checkpoint(1, folder)) == progress


def test_progress_that_is_not_a_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Progress(RUN, unlogged_losses=[float("nan")]).write(tmp_path)

    assert names(tmp_path) == set()


def test_a_run_that_begins_has_done_nothing_yet() -> None:
    begun = Progress(RUN)

    assert {
        getattr(begun, field.name) for field in fields(begun) if field.name not in ("run_id", "unlogged_losses")
    } == {
        0,
        None,
    }
    assert begun.unlogged_losses == []


@given(seed=st.integers(0, 2**32 - 1), used=st.integers(0, 7))
def test_from_a_state_the_same_random_numbers_come_again(seed: int, used: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for _ in range(used):
        numbers()  # of which some keep a second number for later

    state = random_state()
    first = [numbers() for _ in range(3)]
    set_random_state(state)

    assert [numbers() for _ in range(3)] == first


def test_a_state_of_random_numbers_comes_back_from_a_file(tmp_path: Path) -> None:
    numbers()
    write_values(tmp_path / "random.safetensors", [{"now": random_state()}])
    first = numbers()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)

    set_random_state(read_values(tmp_path / "random.safetensors")[0]["now"])

    assert numbers() == first


def test_a_state_is_not_changed_by_the_numbers_that_come_after_it() -> None:
    state = random_state()

    first = numbers()
    set_random_state(state)
    second = numbers()
    set_random_state(state)

    assert first == second == numbers()


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_from_a_state_the_very_steps_are_taken_that_would_have_come(tmp_path: Path, steps: int) -> None:
    training = Training.begin()
    training.steps(steps)

    other = Training.begin().restored(training, tmp_path, adopt=False)

    assert other.steps(4) == training.steps(4)
    assert torch.equal(other.weights, training.weights)


def test_what_was_written_has_the_last_word_where_nothing_changed(tmp_path: Path) -> None:
    training = Training.begin(rate=0.1, decay=0.01)
    training.steps(3)

    other = Training.begin(rate=0.7, decay=0.5).restored(training, tmp_path, adopt=False)

    assert other.steps(3) == training.steps(3)
    assert torch.equal(other.weights, training.weights)


def test_a_new_learning_rate_acts_from_the_next_step_on(tmp_path: Path) -> None:
    training = Training.begin(rate=0.1)
    training.steps(3)
    straight = Training.begin(rate=0.2)
    straight.steps(3)

    other = Training.begin(rate=0.2).restored(training, tmp_path, adopt=True)

    assert other.steps(4) == straight.steps(4)


def test_a_new_schedule_acts_where_the_old_one_was(tmp_path: Path) -> None:
    training = Training.begin(schedule=lambda step: 1 / (1 + step))
    training.steps(3)

    other = Training.begin(schedule=lambda step: 0.5**step).restored(training, tmp_path, adopt=True)

    assert other.steps(3) == pytest.approx([0.1 / 8, 0.1 / 16, 0.1 / 32])


def test_new_betas_and_a_new_weight_decay_act_on_the_moments_that_were_kept(tmp_path: Path) -> None:
    training = Training.begin(decay=0.01)
    training.steps(3)

    other = Training.begin(decay=0.5).restored(training, tmp_path, adopt=True)
    group, state = other.optimizer.param_groups[0], other.optimizer.state[other.weights]

    assert group["weight_decay"] == 0.5
    assert torch.equal(state["exp_avg"], training.optimizer.state[training.weights]["exp_avg"])
    assert state["step"] == 3


def test_hyperparameters_that_did_not_change_are_adopted_without_any_effect(tmp_path: Path) -> None:
    training = Training.begin()
    training.steps(3)

    other = Training.begin().restored(training, tmp_path, adopt=True)

    assert other.steps(4) == training.steps(4)
    assert torch.equal(other.weights, training.weights)


def test_only_a_run_with_a_scaler_has_its_file_and_gets_its_scale_back(tmp_path: Path) -> None:
    training, scaler = Training.begin(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    training.save(tmp_path)
    without = names(tmp_path)
    write_states(tmp_path, training.optimizer.state_dict(), training.scheduler, scaler, [])
    other = torch.amp.GradScaler("cpu", init_scale=2.0)

    restore_states(tmp_path, WHOLE, training.optimizer, training.scheduler, other, adopt=False)

    assert without == {"optimizer.safetensors", "scheduler.safetensors", "random.safetensors"}
    assert names(tmp_path) == without | {"scaler.safetensors"}
    assert other.get_scale() == scaler.get_scale() == 1024.0


def test_a_scaler_without_a_file_stays_as_it_is(tmp_path: Path) -> None:
    training, scaler = Training.begin(), torch.amp.GradScaler("cpu", init_scale=2.0)

    training.save(tmp_path)
    restore_states(tmp_path, WHOLE, training.optimizer, training.scheduler, scaler, adopt=False)

    assert scaler.get_scale() == 2.0


def test_random_states_are_kept_with_the_others(tmp_path: Path) -> None:
    training, state = Training.begin(), random_state()

    states = [{"now": state, "epoch": state}]
    write_states(tmp_path, training.optimizer.state_dict(), training.scheduler, None, states)
    first = numbers()
    set_random_state(read_randoms(tmp_path)[0]["epoch"])

    assert numbers() == first


def test_a_checkpoint_that_was_waited_for_is_sound(writer: CheckpointWriter, tmp_path: Path) -> None:
    writer.write(3, fill, best=None)
    writer.wait()

    (checkpoint,) = find_checkpoints(tmp_path / "checkpoints")
    assert (checkpoint.step, checkpoint.faults(RUN)) == (3, [])
    assert names(checkpoint.path) == {WEIGHTS, PROGRESS_NAME, MANIFEST_NAME}
    assert names(tmp_path / "checkpoints") == {"step-3"}


def test_while_it_is_filled_a_checkpoint_is_not_there_yet(writer: CheckpointWriter, tmp_path: Path) -> None:
    found: list[set[str]] = []

    def fill_and_look(folder: Path) -> None:
        fill(folder)
        found.append(names(tmp_path / "checkpoints") - {folder.name})

    writer.write(3, fill_and_look, best=None)

    assert found == [set()]


def test_whenever_a_checkpoint_is_there_its_manifest_is_too(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, RUN, keep=None)
    places = [checkpoint_place(tmp_path, step) for step in range(1, 6)]
    done, found = threading.Event(), set[bool]()

    def look() -> None:
        while not (done.is_set() and found):
            found.update((place / MANIFEST_NAME).is_file() for place in places if place.is_dir())

    looking = threading.Thread(target=look)
    looking.start()
    for step in range(1, 6):
        writer.write(step, fill, best=None)
    writer.close()
    done.set()
    looking.join()

    assert found == {True}


def test_the_next_checkpoint_begins_when_the_one_before_is_whole(writer: CheckpointWriter, tmp_path: Path) -> None:
    found: list[set[str]] = []

    def fill_and_look(folder: Path) -> None:
        fill(folder)
        found.append(names(tmp_path / "checkpoints") - {folder.name})

    for step in (1, 2, 3):
        writer.write(step, fill_and_look, best=None)

    assert found == [set(), {"step-1"}, {"step-1", "step-2"}]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("halfway"), KeyboardInterrupt()])
def test_a_fill_that_fails_leaves_nothing_and_keeps_what_is_there(
    writer: CheckpointWriter, tmp_path: Path, error: BaseException
) -> None:
    for step in (1, 2):
        writer.write(step, fill, best=None)

    with pytest.raises(type(error)) as caught:
        writer.write(3, partial(fill_half, error=error), best=None)
    writer.wait()

    assert caught.value is error
    assert names(tmp_path / "checkpoints") == {"step-1", "step-2"}
    assert [checkpoint.faults(RUN) for checkpoint in find_checkpoints(tmp_path / "checkpoints")] == [[], []]


def test_after_a_fill_that_failed_the_next_one_is_written(writer: CheckpointWriter, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="halfway"):
        writer.write(1, partial(fill_half, error=ValueError("halfway")), best=None)

    writer.write(2, fill, best=None)
    writer.wait()

    assert names(tmp_path / "checkpoints") == {"step-2"}


def test_the_newest_are_kept_and_the_best_beside_them(writer: CheckpointWriter, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        writer.write(step, fill, best=2)
    writer.wait()

    assert names(tmp_path / "checkpoints") == {"step-2", "step-4", "step-5"}


def test_a_best_that_is_better_takes_the_place_of_the_one_before(writer: CheckpointWriter, tmp_path: Path) -> None:
    for step, best in ((1, 1), (2, 1), (3, 1), (4, 4), (5, 4)):
        writer.write(step, fill, best=best)
    writer.wait()

    assert names(tmp_path / "checkpoints") == {"step-4", "step-5"}


def test_without_a_number_all_are_kept(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, RUN, keep=None)
    for step in (1, 2, 3, 4):
        writer.write(step, fill, best=None)
    writer.wait()
    writer.close()

    assert names(tmp_path) == {"step-1", "step-2", "step-3", "step-4"}


def test_checkpoints_of_another_run_stay(tmp_path: Path) -> None:
    other = CheckpointWriter(tmp_path, OTHER_RUN, keep=None)
    other.write(1, partial(fill, run_id=OTHER_RUN), best=None)
    other.wait()
    other.close()

    writer = CheckpointWriter(tmp_path, RUN, keep=1)
    for step in (2, 3):
        writer.write(step, fill, best=None)
    writer.wait()
    writer.close()

    assert names(tmp_path) == {"step-1", "step-3"}


def test_an_error_of_the_thread_comes_out_of_the_wait_once(writer: CheckpointWriter, tmp_path: Path) -> None:
    writer.write(1, fill, best=None)
    writer.wait()
    (tmp_path / "checkpoints" / "step-2").write_text("in the way", encoding="utf-8")

    writer.write(2, fill, best=None)
    with pytest.raises(NotADirectoryError):
        writer.wait()
    writer.wait()

    assert names(tmp_path / "checkpoints") == {"step-1", "step-2"}
    assert (tmp_path / "checkpoints" / "step-2").read_text(encoding="utf-8") == "in the way"


def test_an_error_of_the_thread_comes_out_of_the_next_write_which_writes_nothing(
    writer: CheckpointWriter, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-1").write_text("in the way", encoding="utf-8")

    writer.write(1, fill, best=None)
    with pytest.raises(NotADirectoryError):
        writer.write(2, fill, best=None)

    assert names(tmp_path / "checkpoints") == {"step-1"}


def test_a_checkpoint_that_is_there_already_is_not_overwritten(writer: CheckpointWriter, tmp_path: Path) -> None:
    writer.write(1, fill, best=None)
    writer.write(1, partial(fill, run_id=OTHER_RUN), best=None)

    with pytest.raises(OSError, match="not empty"):
        writer.wait()

    assert Checkpoint(1, checkpoint_place(tmp_path / "checkpoints", 1)).faults(RUN) == []
    assert names(tmp_path / "checkpoints") == {"step-1"}


def test_close_returns_when_what_was_begun_is_whole(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, RUN, keep=2)
    writer.write(1, fill, best=None)

    writer.close()

    assert Checkpoint(1, checkpoint_place(tmp_path, 1)).faults(RUN) == []


def test_where_nothing_was_written_there_is_nothing_to_wait_for(writer: CheckpointWriter, tmp_path: Path) -> None:
    writer.wait()

    assert names(tmp_path) == set()


def test_what_is_written_is_the_state_of_its_step_though_training_goes_on(
    writer: CheckpointWriter, tmp_path: Path
) -> None:
    training, other = Training.begin(), Training.begin()
    training.steps(2)
    with torch.no_grad():
        other.weights.copy_(training.weights)

    def fill_states(folder: Path) -> None:
        fill(folder)
        training.save(folder)

    writer.write(2, fill_states, best=None)
    rates = training.steps(4)
    writer.wait()
    folder = checkpoint_place(tmp_path / "checkpoints", 2)
    restore_states(folder, WHOLE, other.optimizer, other.scheduler, None, adopt=False)

    assert other.steps(4) == rates
    assert torch.equal(other.weights, training.weights)
