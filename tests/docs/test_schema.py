"""Editors know every recipe that peftkit would take, and what each field means."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
from ruamel.yaml import YAML

from peftkit.recipe.library import find_recipe, shipped_recipes

jsonschema = pytest.importorskip("jsonschema")  # a machine that only runs the tests of a GPU need not have it


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    generator = run_path(str(Path(__file__).resolve().parents[2] / "docs" / "generate.py"))
    made: dict[str, Any] = generator["recipe_schema"]()
    return made


def test_the_schema_that_is_shipped_is_that_of_the_code(schema: dict[str, Any]) -> None:
    shipped = files("peftkit").joinpath("assets/recipe.schema.json").read_text(encoding="utf-8")

    assert json.loads(shipped) == schema


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_satisfies_it(name: str, schema: dict[str, Any]) -> None:
    recipe = YAML(typ="safe", pure=True).load(find_recipe(name).read_text(encoding="utf-8"))

    assert list(jsonschema.Draft202012Validator(schema).iter_errors(recipe)) == []


def test_it_refuses_a_typo_in_every_section(schema: dict[str, Any]) -> None:
    recipe = {"name": "x", "base": {"modle": "gpt2"}, "lora": {"rr": 1}, "data": {"train": {"path": "a.txt"}, "x": 1}}

    assert len(list(jsonschema.Draft202012Validator(schema).iter_errors(recipe))) >= 3


def test_every_documented_field_has_its_meaning(schema: dict[str, Any]) -> None:
    for name in ("Training", "Lora", "Data", "Init"):
        fields = schema["$defs"][name]["properties"]
        assert [field for field, value in fields.items() if not value.get("description")] == []
