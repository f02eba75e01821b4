"""Whatever field a recipe sets, reports and cards have it."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest

from peftkit.recipe.settings import set_fields

SCHEMA = json.loads(files("peftkit").joinpath("assets/recipe.schema.json").read_text(encoding="utf-8"))
HEADINGS = {"name", "description", "method"}
SET = "a value that nothing has by default"


def fields_of(schema: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every field that a recipe may have, those that are passed on to a library included."""
    found: list[tuple[str, ...]] = []
    for name, field in schema["properties"].items():
        parts = (field, *field.get("anyOf", ()), field.get("items", {}))
        inner: dict[str, Any] = next(
            (SCHEMA["$defs"][part["$ref"].rpartition("/")[2]] for part in parts if "$ref" in part), {}
        )
        found += fields_of(inner, (*path, name)) if inner else [(*path, name)]
    return found


FIELDS = [path for path in fields_of(SCHEMA) if path[0] not in HEADINGS]


def recipe_with(path: tuple[str, ...], value: object) -> dict[str, Any]:
    recipe: dict[str, Any] = {"method": "qlora"}
    place = recipe
    for part in path[:-1]:
        place = place.setdefault(part, {})
    place[path[-1]] = value
    return recipe


def test_the_schema_has_all_kinds_of_fields() -> None:
    assert {("training", "lr_scheduler_kwargs"), ("base", "init", "n_layer"), ("precision",)} <= set(FIELDS)
    assert len(FIELDS) > 150


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_field_that_is_set_is_found(path: tuple[str, ...]) -> None:
    groups = set_fields(recipe_with(path, SET))

    home, name = ("recipe", path[0]) if len(path) == 1 else (path[0], ".".join(path[1:]))
    assert groups[home][name] == SET


def test_fields_of_each_item_of_a_list_are_found() -> None:
    sources = [{"path": "a.jsonl", "weight": 1.0}, {"path": "b.jsonl", "limit": 5}]

    assert set_fields(recipe_with(("data", "train"), sources))["data"] == {
        "train.0.path": "a.jsonl",
        "train.0.weight": 1.0,
        "train.1.path": "b.jsonl",
        "train.1.limit": 5,
    }


def test_a_field_that_the_schema_does_not_know_is_found_too() -> None:
    assert set_fields(recipe_with(("training", "renamed_since"), 3))["training"] == {"renamed_since": 3}


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "full", "lora": {"r": 4}},
        {"method": "lora", "quantization": {"load_in_8bit": True}},
        {"training": {"max_steps": -1}},
        {"training": {"logging_steps": 10, "save_total_limit": 2}},
        {"data": {"columns": {}, "truncation": None}},
    ],
    ids=str,
)
def test_what_does_not_act_and_defaults_that_are_no_hyperparameters_are_left_out(recipe: dict[str, Any]) -> None:
    assert set_fields(recipe) == {}
