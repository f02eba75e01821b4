"""`--set` changes one field, and whatever cannot act is refused."""

from __future__ import annotations

from typing import Any

import pytest

from peftkit.errors import RecipeError
from peftkit.recipe.layers import parse_override


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("training.learning_rate=1e-4", ("training", "learning_rate"), 1e-4),
        ("description=a=b", ("description",), "a=b"),
        ("description=", ("description",), None),
        ("description='a # b'", ("description",), "a # b"),
        ("lora={r: 2, target_modules: [a, b]}", ("lora",), {"r": 2, "target_modules": ["a", "b"]}),
        (" lora.r = 3", ("lora", "r"), 3),
        ("training.save_strategy=no", ("training", "save_strategy"), "no"),
    ],
)
def test_the_first_equals_sign_parts_a_field_from_its_yaml(text: str, path: tuple[str, ...], value: Any) -> None:
    override = parse_override(text)

    assert (override.path, override.value) == (path, value)
    assert override.where == f"--set {'.'.join(path)}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora.r", "--set lora.r: is not FIELD=VALUE."),
        ("=3", "--set =3: is not FIELD=VALUE."),
        ("lora..r=3", "--set lora..r=3: is not FIELD=VALUE."),
        ("lora={r: 2", "--set lora: is not valid YAML"),
        ("lora.r=!x 3", "--set lora.r: lora.r: has the tag !x."),
        ("lora={r: 1, r: 2}", "--set lora: lora.r: comes twice."),
        ("name=a\nmethod: full", "--set name: is not valid YAML"),
        ("methods.full.training.seed=1", "--set methods.full.training.seed: methods.full.training.seed: cannot be set"),
        ("methods={}", "--set methods: methods: cannot be set"),
    ],
)
def test_what_is_no_field_and_value_is_an_error_that_names_the_option(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_override(text)

    assert str(error.value).startswith(message)
    assert error.value.problems[0].remedy
