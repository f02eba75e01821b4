"""`peftkit recipes`: choose a recipe, copy it, make a new one, check it."""

from __future__ import annotations

from pathlib import Path

import click

from peftkit import console
from peftkit.cli import new_recipe, options
from peftkit.errors import TargetError
from peftkit.recipe.library import find_recipe, list_recipes

__all__ = ["command"]


@click.group("recipes")
def command() -> None:
    """Choose a recipe, copy it, make a new one, check it."""


command.add_command(new_recipe.command)


@command.command("list")
@options.as_json
def list_shipped(as_json: bool) -> None:
    """The recipes that come with peftkit."""
    recipes = list_recipes()
    if as_json:
        console.print_json(
            [{name: getattr(recipe, name) for name in ("name", "method", "description")} for recipe in recipes]
        )
        return
    rows = [[recipe.name, recipe.base, recipe.format, recipe.description] for recipe in recipes]
    console.print_table(None, ["recipe", "base", "format", "what it is for"], rows)


@command.command("show")
@click.argument("recipe")
def show(recipe: str) -> None:
    """Print a recipe as it is written."""
    console.print_text(find_recipe(recipe).read_text(encoding="utf-8").rstrip())


@command.command("copy")
@click.argument("recipe")
@click.argument("destination", type=click.Path(path_type=Path))
def copy(recipe: str, destination: Path) -> None:
    """Copy a shipped recipe, to change it.

    \b
    Example:
      peftkit recipes copy gpt2-wikitext2 my.yaml
    """
    source = find_recipe(recipe)
    place = destination / source.name if destination.is_dir() else destination
    if place.exists():
        raise TargetError("exists already.", where=str(place), remedy="Choose another name.")
    if not place.parent.is_dir():
        raise TargetError("there is no such folder.", where=str(place.parent), remedy="Make it first.")
    text = source.read_text(encoding="utf-8")
    schema_note = "# yaml-language-server:"
    lines = [line for line in text.splitlines() if not line.startswith(schema_note)]
    place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print_text(str(place))


@command.command("check")
@click.argument("recipe")
@options.method
@options.overrides
def check(recipe: str, method: str | None, overrides: tuple[str, ...]) -> None:
    """Check a recipe and print it complete, every default written out.

    What a base or the data would say against it is found by `peftkit train`, before it trains.
    """
    from peftkit.recipe.loader import load_recipe

    file = load_recipe(find_recipe(recipe), method=method, overrides=overrides)
    console.print_text(file.resolved_yaml().rstrip())


@command.command("schema")
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from peftkit.recipe.json_schema import recipe_schema

    console.print_json(recipe_schema())
