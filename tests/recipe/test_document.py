"""YAML is read as version 1.2 says, with lines, and what would mislead a reader is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.errors import Problem, RecipeError
from peftkit.recipe.document import is_number, parse_document, parse_override


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4), ("5E-5", 5e-5), (".5", 0.5), ("3.", 3.0), ("-2.5e+3", -2500.0), ("12", 12), ("-3", -3),
        ("010", 10), ("0o10", 8), ("0x1F", 31), ("true", True), ("FALSE", False), ("null", None), ("~", None),
        ("", None), ("no", "no"), ("yes", "yes"), ("on", "on"), ("1:30", "1:30"), ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"), ("0b11", "0b11"), ("'1'", "1"), ('"true"', "true"), ("''", ""), (".inf", math.inf),
        ("-.INF", -math.inf), ("tRUE", "tRUE"),
    ],
)  # fmt: skip
def test_a_plain_word_means_what_the_core_schema_of_yaml_1_2_says(text: str, expected: Any) -> None:
    value = parse_document(f"key: {text}\n", "a.yaml").values["key"]

    assert value == expected
    assert type(value) is type(expected)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_override("a=.nan")[1])


def test_a_directive_for_yaml_1_1_changes_no_value() -> None:
    assert parse_document("%YAML 1.1\n---\na: yes\nb: 1e-4\n", "a.yaml").values == {"a": "yes", "b": 1e-4}


def test_every_key_and_item_has_its_line() -> None:
    document = parse_document("# why\na:\n  b: 1\n\n  c:\n    - x\n    - y: {z: 2}\n", "a.yaml")

    assert document.values == {"a": {"b": 1, "c": ["x", {"y": {"z": 2}}]}}
    assert document.lines == {
        ("a",): 2, ("a", "b"): 3, ("a", "c"): 5, ("a", "c", 0): 6, ("a", "c", 1): 7, ("a", "c", 1, "y"): 7,
        ("a", "c", 1, "y", "z"): 7}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.yaml:1: is empty."),
        ("# only this\n", "a.yaml:1: is empty."),
        ("- a\n", "a.yaml:1: is not a mapping of fields."),
        ("word\n", "a.yaml:1: is not a mapping of fields."),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "a.yaml:4: b.c: comes twice. It is on line 3 already"),
        ("a: 1\n---\nb: 2\n", "a.yaml:2: has a second document."),
        ("a: {b: 1\n", "a.yaml:1: is not valid YAML"),
        ("a:\n\tb: 1\n", "a.yaml:2: is not valid YAML"),
        ("a: 1\nb: \x01\n", "a.yaml:2: is not valid YAML"),
        ("a: &x 1\n", "a.yaml:1: a: has an anchor."),
        ("a: 1\nb: &x {c: *x}\n", "a.yaml:2: has the alias *x."),
        ("a: !!int '4'\n", "a.yaml:1: a: has the tag"),
        ("a: !!bool maybe\n", "a.yaml:1: a: has the tag"),
        ("a:\n  b: !mine {c: 1}\n", "a.yaml:2: a.b: has the tag !mine."),
        ("a: !mine [1]\n", "a.yaml:1: a: has the tag !mine."),
        ("a: {1: 2}\n", "a.yaml:1: a: has a key that is no name."),
        ("a: {true: 2}\n", "a.yaml:1: a: has a key that is no name."),
        ("a: {~: 2}\n", "a.yaml:1: a: has a key that is no name."),
        ("a: {[b]: 2}\n", "a.yaml:1: a: has a key that is no name."),
        ("a: {<<: {b: 1}}\n", "a.yaml:1: a: has a key that is no name."),
        ("a: {!!str b: 1}\n", "a.yaml:1: a: has a key that is no name."),
        (f"a: {'9' * 5000}\n", "a.yaml:1: a: is a number of 5000 digits."),
        (f"a: {'[' * 2000}{']' * 2000}\n", "a.yaml:1: is nested too deeply."),
    ],
)
def test_what_is_no_plain_document_is_one_problem_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_document(text, "a.yaml")

    assert len(error.value.problems) == 1
    assert str(error.value).startswith(message)
    assert error.value.problems[0].remedy


def test_problems_in_several_places_are_told_together() -> None:
    with pytest.raises(RecipeError) as error:
        parse_document("a: &x 1\nb: !t 2\nb: 3\n", "a.yaml")

    assert [problem.where for problem in error.value.problems] == ["a.yaml:1", "a.yaml:2", "a.yaml:3"]


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    values: dict[str, Any] = {}
    try:
        values = parse_document(text, "a.yaml").values
    except RecipeError as error:
        problems = error.problems

    assert all(problem.where.startswith("a.yaml:") for problem in problems)
    assert isinstance(values, dict)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_a_number_as_python_writes_it_is_that_number(number: float) -> None:
    assert is_number(repr(number))
    assert parse_override(f"a={number!r}")[1] == number


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
    assert parse_override(text) == (path, value)


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
