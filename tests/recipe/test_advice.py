"""Each hyperparameter has advice, and what it says has a source."""

from __future__ import annotations

import re

import pytest

from peftkit.recipe.advice import Between, shown
from peftkit.recipe.fields import documented_fields
from peftkit.recipe.hyperparameters import Init, Lora, Quantization, Training
from peftkit.recipe.methods import ADVICE, KINDS, usual_rate

_OF_THE_RUN = {"per_device_eval_batch_size", "logging_steps", "eval_strategy", "save_strategy", "save_total_limit"}
"""Fields of `training` that change nothing of what is learned."""


def test_no_advice_is_left_of_a_field_that_is_gone() -> None:
    known = {field.path for fields in documented_fields().values() for field in fields}

    assert set(ADVICE) - known == set()


def test_every_hyperparameter_has_advice() -> None:
    wanted = {f"training.{name}" for name in Training.model_fields if name not in _OF_THE_RUN}
    wanted |= {f"lora.{name}" for name in Lora.model_fields}
    wanted |= {f"quantization.{name}" for name in Quantization.model_fields}
    wanted |= {f"base.init.{name}" for name in Init.model_fields if name != "tokenizer"}
    wanted |= {"base.dropout", "base.dtype", "data.max_length", "data.packing", "precision"}

    assert wanted - set(ADVICE) == set()


@pytest.mark.parametrize("field", ADVICE)
def test_usual_values_name_a_paper_or_a_librarys_documentation(field: str) -> None:
    sources = [usual.source for usual in ADVICE[field].usual]

    assert [source for source in sources if not re.search(r"\b(19|20)\d\d\b|PEFT|Transformers", source)] == []


@pytest.mark.parametrize("field", ADVICE)
def test_advice_says_what_other_values_do(field: str) -> None:
    advice = ADVICE[field]

    assert advice.effects
    assert (advice.higher is None) == (advice.lower is None)
    assert all(usual.low <= usual.high for usual in advice.usual if isinstance(usual, Between))


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_usual_learning_rate_for_all_that_is_trained(kind: str) -> None:
    rates = usual_rate(kind)

    assert rates.low <= rates.middle < rates.high


def test_the_middle_of_lora_rates_is_that_of_the_paper() -> None:
    assert usual_rate("lora").middle == 2e-4  # Hu et al. 2021, table 11


@pytest.mark.parametrize(
    ("value", "text"),
    [(5e-5, "5e-5"), (2.5e-5, "2.5e-5"), (1e-10, "1e-10"), (-1e-4, "-1e-4"), (0.05, "0.05"), (16.0, "16"), (0.0, "0"),
     (-1, "-1"), (True, "true"), (None, "null"), ("auto", "auto"), (["a", 1], "[a, 1]"), ({"a": 1}, '{"a": 1}')],
)  # fmt: skip
def test_values_are_shown_as_a_recipe_has_them(value: object, text: str) -> None:
    assert shown(value) == text
