"""The shipped recipes are known by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.errors import InputError
from peftkit.recipe.library import ShippedRecipe, find_recipe, list_recipes, recipe_name, shipped_recipes
from peftkit.recipe.loader import load_recipe


def test_a_shipped_recipe_is_called_by_its_name_and_found_by_it() -> None:
    for name, path in shipped_recipes().items():
        assert (find_recipe(name), recipe_name(path)) == (path, name)


def test_a_file_of_ones_own_is_called_by_its_path(tmp_path: Path) -> None:
    own = tmp_path / "quickstart.yaml"
    own.write_text("method: full\n", encoding="utf-8")

    assert (find_recipe(str(own)), recipe_name(own)) == (own, str(own))


def test_a_name_that_is_nearly_one_is_asked_for() -> None:
    with pytest.raises(InputError, match="neither a recipe file nor a shipped recipe"):
        find_recipe("quickstrat")


def test_what_is_listed_of_a_shipped_recipe_is_what_the_loader_reads() -> None:
    loaded = [load_recipe(path).recipe for path in shipped_recipes().values()]

    assert list_recipes() == [
        ShippedRecipe(
            recipe.name, recipe.method, recipe.base.model or "new", recipe.data.format, recipe.description or ""
        )
        for recipe in loaded
    ]
