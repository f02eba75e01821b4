"""Intervals over seeds hold the truth as often as they say, and a learning rate far from the usual is reported."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from peftkit.experiments.tabulate import rate_concern, statistic, welch_interval
from peftkit.recipe.methods import Method


def test_a_mean_has_the_standard_error_of_its_values() -> None:
    found = statistic([1.0, 2.0, 3.0])

    assert found.mean == 2.0
    assert found.standard_error == pytest.approx(1 / 3**0.5)


def test_one_value_has_no_error_and_no_interval() -> None:
    assert statistic([1.0]).standard_error is None
    assert welch_interval([1.0], [1.0, 2.0]) is None


def test_equal_values_differ_by_just_their_difference() -> None:
    assert welch_interval([2.0, 2.0], [1.0, 1.0]) == (1.0, 1.0)


def test_the_interval_is_that_of_scipys_own_test() -> None:
    ours, theirs = [1.0, 2.0, 3.0], [1.1, 2.5, 3.9]

    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)

    assert welch_interval(ours, theirs) == pytest.approx((expected.low, expected.high), rel=1e-12)


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_the_interval_holds_the_true_difference_as_often_as_it_says(spread: float) -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(1.0, 1.0, 3), rng.normal(0.0, spread, 3)) for _ in range(2000)]
    found = [welch_interval(ours.tolist(), theirs.tolist()) for ours, theirs in pairs]

    held = np.mean([interval is not None and interval[0] <= 1.0 <= interval[1] for interval in found])

    assert 0.93 <= held <= 0.99


@pytest.mark.parametrize(
    ("method", "rate", "words"),
    [
        ("full", 3e-4, "learning_rate 3e-4 is high for full, which is usually trained with 2e-5 to 5e-5 (Devlin"),
        ("lora", 1e-5, "learning_rate 1e-5 is low for lora, which is usually trained with 1e-4 to 5e-4 (Hu"),
    ],
)
def test_a_far_rate_is_told_with_the_usual_ones(method: Method, rate: float, words: str) -> None:
    concern = rate_concern(method, rate, 124_000_000)

    assert concern is not None
    assert concern.startswith(words)


def test_nothing_is_said_of_a_near_rate_or_of_a_small_model() -> None:
    assert rate_concern("qlora", 2e-4, 124_000_000) is None
    assert rate_concern("full", 3e-3, 1_000_000) is None
