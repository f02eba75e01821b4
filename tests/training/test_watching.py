"""Trouble in a run's metrics is reported once as it shows, and ordinary noise is not reported."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState

from peftkit.training.watching import HealthWatch, sign_of_trouble

FEWEST = 5
"""Steps that have to be there before one whose loss can be too high."""


def logs(losses: list[float], norms: list[float] | None = None) -> list[dict[str, Any]]:
    """What the Trainer logs of a step each."""
    norms = norms or [1.0] * len(losses)
    return [
        {"loss": loss, "grad_norm": norm, "learning_rate": 1e-4, "step": step}
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), 1)
    ]


def signs(history: list[dict[str, Any]]) -> list[str | None]:
    """What is said after each of the logs, as they come."""
    return [sign_of_trouble(history[:length]) for length in range(1, len(history) + 1)]


def test_a_loss_that_jumps_is_told_with_its_step_and_what_it_was_before() -> None:
    sign = sign_of_trouble(logs([2.0, 2.01, 1.99, 2.0, 2.02, 9.5]))

    assert sign is not None
    assert sign.startswith("the loss rose to 9.5 at step 6, from about 2. ")
    assert "lower training.learning_rate" in sign


@pytest.mark.parametrize("count", range(1, FEWEST + 1))
def test_a_jump_after_too_few_steps_is_not_told(count: int) -> None:
    assert sign_of_trouble(logs([*[2.0] * (count - 1), 50.0])) is None


def test_a_jump_is_told_as_soon_as_there_are_enough_steps() -> None:
    assert sign_of_trouble(logs([*[2.0] * FEWEST, 50.0])) is not None


@pytest.mark.parametrize(("loss", "told"), [(2.99, False), (3.01, True)])
def test_a_steady_loss_may_rise_by_half_of_it(loss: float, told: bool) -> None:
    assert (sign_of_trouble(logs([*[2.0] * 8, loss])) is not None) == told


@pytest.mark.parametrize(("loss", "told"), [(0.109, False), (0.111, True)])
def test_a_loss_near_zero_may_rise_by_a_tenth(loss: float, told: bool) -> None:
    assert (sign_of_trouble(logs([*[0.01] * 8, loss])) is not None) == told


@pytest.mark.parametrize(("loss", "told"), [(7.9, False), (8.1, True)])
def test_a_loss_that_goes_up_and_down_may_rise_by_six_times_as_much(loss: float, told: bool) -> None:
    assert (sign_of_trouble(logs([*[1.0, 3.0] * 4, 2.0, loss])) is not None) == told


def test_a_loss_that_falls_is_no_sign_however_far() -> None:
    assert signs(logs([9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 0.001, 0.0])) == [None] * 8


def test_steps_that_are_long_past_do_not_count() -> None:
    assert sign_of_trouble(logs([*[50.0] * 30, *[2.0] * 20, 9.5])) is not None


def test_what_is_logged_beside_the_steps_does_not_count() -> None:
    evaluations = [{"eval_loss": 90.0, "step": 6}] * 3

    sign = sign_of_trouble([*logs([2.0] * 6), *evaluations, {"loss": 9.5, "step": 7}])

    assert sign is not None
    assert sign.startswith("the loss rose to 9.5 at step 7, from about 2.")
    assert sign_of_trouble([*logs([2.0] * 6), *evaluations]) is None
    assert sign_of_trouble(evaluations) is None
    assert sign_of_trouble([]) is None


@given(seed=st.integers(0, 2**32), start=st.floats(0.5, 12), noise=st.floats(0, 0.08))
def test_a_loss_that_falls_with_some_noise_says_nothing(seed: int, start: float, noise: float) -> None:
    source = random.Random(seed)
    losses = [start * 0.99**step * (1 + source.uniform(-noise, noise)) for step in range(60)]

    assert signs(logs(losses)) == [None] * 60


@given(losses=st.lists(st.floats(0, 100), min_size=1, max_size=30), rise=st.floats(0, 1e6))
def test_what_is_a_spike_is_one_when_the_loss_is_still_higher(losses: list[float], rise: float) -> None:
    told = sign_of_trouble(logs(losses)) is not None
    higher = sign_of_trouble(logs([*losses[:-1], losses[-1] + rise])) is not None

    assert higher or not told


def test_a_gradient_that_stays_zero_is_told_once_with_where_it_began() -> None:
    found = signs(logs([2.0] * 9, [1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]))

    assert [sign is not None for sign in found] == [False] * 4 + [True] + [False] * 4
    assert str(found[4]).startswith("the gradient norm has been zero since step 3: nothing is learnt.")


def test_a_gradient_that_is_zero_from_the_start_is_told_at_the_third_step() -> None:
    found = signs(logs([2.0] * 5, [0.0] * 5))

    assert [sign is not None for sign in found] == [False, False, True, False, False]


def test_a_gradient_that_is_zero_again_is_told_again() -> None:
    found = signs(logs([2.0] * 8, [0.0, 0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0]))

    assert [index for index, sign in enumerate(found) if sign] == [2, 7]
    assert "since step 6" in str(found[7])


def test_a_gradient_that_is_zero_now_and_then_says_nothing() -> None:
    assert signs(logs([2.0] * 8, [0.0, 0.0, 1.0, 0.0, 0.0, 1e-12, 0.0, 0.0])) == [None] * 8


def test_steps_without_a_gradient_norm_say_nothing() -> None:
    assert signs([{"loss": 2.0, "step": step} for step in range(6)]) == [None] * 6


def test_a_watch_warns_of_each_sign_when_its_step_is_logged() -> None:
    said: list[str] = []
    watch, state = HealthWatch(said.append), TrainerState()

    for log in logs([*[2.0] * 8, 9.5, 2.0], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]):
        state.log_history.append(log)
        watch.on_log(None, state, TrainerControl(), logs=log)

    assert [line.split(":")[0].split(",")[0] for line in said] == [
        "the gradient norm has been zero since step 3",
        "the loss rose to 9.5 at step 9",
    ]


@pytest.mark.parametrize("log", [{"eval_loss": 1.0}, {"train_runtime": 1.0}, {}, None])
def test_a_watch_does_not_say_again_what_it_said_when_something_else_is_logged(log: dict[str, Any] | None) -> None:
    said: list[str] = []
    state = TrainerState(log_history=logs([*[2.0] * 8, 9.5]))

    HealthWatch(said.append).on_log(None, state, TrainerControl(), logs=log)

    assert said == []
