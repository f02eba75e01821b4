"""A learning rate that is far from a method's usual ones is told, of models that are large enough."""

from __future__ import annotations

import pytest

from peftkit.experiments.tabulate import rate_concern
from peftkit.recipe.schema import Method


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
