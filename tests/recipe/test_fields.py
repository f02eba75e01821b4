"""Fields are found by their names, and documented by peftkit or by the library that they are passed on to."""

from __future__ import annotations

import json

import pytest

from peftkit.errors import InputError
from peftkit.recipe.fields import documented_fields, find_fields
from peftkit.recipe.hyperparameters import Lora, Quantization, Training


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("learning_rate", ["training.learning_rate"]),
        ("training.learning_rate", ["training.learning_rate"]),
        ("lora.r", ["lora.r"]),
        ("n_layer", ["base.init.n_layer"]),
        ("seed", ["data.seed", "training.seed"]),
        ("data.validation.path", ["data.validation.path"]),
        ("split", ["data.train.split"]),
        ("data.train.1.split", ["data.train.split"]),
        ("training", ["training"]),
        ("save_steps", ["training.save_steps"]),
        ("method", ["method"]),
        ("name", ["name"]),
    ],
)
def test_a_field_is_found_by_its_name_or_its_path(name: str, paths: list[str]) -> None:
    assert [field.path for field in find_fields(name)] == paths


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("learning_rat", "Did you mean learning_rate?"),
        ("training.learning_rat", "Did you mean training.learning_rate?"),
        ("lr", "Use learning_rate."),
        ("training.evaluation_strategy", "Use eval_strategy."),
        ("bf16", "Set precision: fp32, fp16 or bf16 at the top level of the recipe."),
        ("learning_rate.x", "Did you mean training.learning_rate?"),
        ("", "`peftkit explain` lists the fields."),
        ("a\nb", "`peftkit explain` lists the fields."),
    ],
)
def test_an_unknown_name_is_an_error_with_what_to_write(name: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        find_fields(name)

    assert caught.value.remedy == remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", [Training, Lora, Quantization])
def test_every_argument_that_is_passed_on_has_its_librarys_documentation(section: type[Training]) -> None:
    undocumented = [name for name in section.passed_through_types() if not section.library.argument(name).help]

    assert undocumented == []


def test_an_argument_that_is_passed_on_has_its_librarys_default() -> None:
    (steps,), (threshold,), (init,) = map(find_fields, ("save_steps", "llm_int8_threshold", "init_lora_weights"))

    assert (steps.default, threshold.default, init.default) == (500, 6.0, True)
    assert steps.library is not None
    assert steps.library.name == "TrainingArguments"
    assert "checkpoint saves" in steps.meaning


@pytest.mark.parametrize("section", [Training, Lora, Quantization])
def test_every_default_of_a_library_can_be_shown(section: type[Training]) -> None:
    defaults = {name: section.library.argument(name).default for name in section.passed_through_types()}

    assert json.loads(json.dumps(defaults, allow_nan=False)) == defaults


def test_every_documented_field_has_a_summary_of_one_sentence() -> None:
    summaries = [field.summary for fields in documented_fields().values() for field in fields]

    assert [text for text in summaries if not text.endswith(".") or "\n" in text] == []
