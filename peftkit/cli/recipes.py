"""`peftkit recipes`: choose a recipe, copy it, make a new one, check it."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from peftkit import console
from peftkit.cli import options
from peftkit.data.formats import AUTO, FORMATS
from peftkit.errors import TargetError
from peftkit.recipe.fields import SCHEMA
from peftkit.recipe.library import find_recipe, list_recipes
from peftkit.recipe.methods import METHODS

__all__ = ["command"]

_GB = 10**9
_SIZE = click.FloatRange(min=0, min_open=True)
_FORMATS = click.Choice([AUTO, *FORMATS])
_METHODS = click.Choice(["auto", *METHODS])


@click.group("recipes")
def command() -> None:
    """Choose a recipe, copy it, make a new one, check it."""


@command.command("list")
@options.as_json
def list_shipped(as_json: bool) -> None:
    """The recipes that come with peftkit."""
    recipes = list_recipes()
    if as_json:
        names = ("name", "method", "description")
        console.print_json([{name: getattr(recipe, name) for name in names} for recipe in recipes])
        return
    rows = [[recipe.name, recipe.model, recipe.format, recipe.description] for recipe in recipes]
    console.print_table(None, ["recipe", "base", "format", "what it is for"], rows)


@command.command("show")
@click.argument("recipe")
def show(recipe: str) -> None:
    """Print a recipe as it is written."""
    console.print_text(find_recipe(recipe).read_text(encoding="utf-8").rstrip())


@command.command("copy")
@click.argument("recipe")
@click.argument("destination", type=options.PATH)
def copy(recipe: str, destination: Path) -> None:
    """Copy a shipped recipe, to change it.

    \b
    Example:
      peftkit recipes copy gpt2-wikitext2 my.yaml
    """
    source = find_recipe(recipe)
    place = destination / source.name if destination.is_dir() else destination
    _check_free(place)
    text = source.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("# yaml-language-server:")]
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
    console.print_json(json.loads(SCHEMA.read_text(encoding="utf-8")))


@command.command("new")
@click.argument("destination", metavar="[PATH]", required=False, type=options.PATH)
@click.option("--data", metavar="FILE", help="A data file, or a data set of the hub as NAME or NAME:CONFIGURATION.")
@click.option("--base", metavar="MODEL", help="The model to start from: a hub name, a folder or builtin:tiny-gpt2.")
@click.option(
    "--memory", type=_SIZE, metavar="GB", help="Memory of the machine that will train, of one GPU if it has any."
)
@click.option("--format", "form", type=_FORMATS, help="What the rows are; auto recognises it.")
@click.option("--method", type=_METHODS, help="How to train; auto takes what the memory holds.")
@click.option("--yes", is_flag=True, help="Ask nothing: where an option is not given, take what would be offered.")
def new(
    destination: Path | None,
    data: str | None,
    base: str | None,
    memory: float | None,
    form: str | None,
    method: str | None,
    yes: bool,
) -> None:
    """Write a recipe for your data, with a comment at each value that says why it was chosen.

    What no option says is asked. The method is chosen by the base's size and the memory: full if 16 bytes for each
    parameter fit, else lora, else qlora. The recipe is checked before it is written, to PATH or into this folder.

    \b
    Examples:
      peftkit recipes new
      peftkit recipes new my.yaml --data train.jsonl --base gpt2 --yes
      peftkit recipes new big.yaml --data rows.csv --base someone/model-7b --memory 24 --method qlora --yes
    """
    if destination:
        _check_free(destination)
    ask = partial(_answer, yes)
    data = ask("data", data, "Data: a file, or a data set of the hub")
    base = ask("base", base, "Base: a hub name, a folder or builtin:tiny-gpt2", "gpt2")
    form = ask("format", form, "Format of the rows", "auto", _FORMATS)
    method = ask("method", method, "Method", "auto", _METHODS)

    from peftkit.models.device import detect_hardware
    from peftkit.training.new_recipe import recipe_name, write_new_recipe

    hardware = detect_hardware()
    here = round(hardware.memory_bytes / _GB, 1)
    memory = ask("memory", memory, f"Memory in GB; {hardware.name} has", here, _SIZE)
    if destination is None:
        destination = Path(f"{recipe_name(f'{Path(base).name}-{Path(data).stem}')}.yaml")
        _check_free(destination)
    elsewhere = memory * _GB if memory != here else None
    chosen: Any = None if method == "auto" else method
    write_new_recipe(data, base, destination, hardware, memory_bytes=elsewhere, format=form, method=chosen)
    console.print_text(str(destination))


def _check_free(destination: Path) -> None:
    if destination.exists():
        raise TargetError("exists already.", where=str(destination), remedy="Choose another name.")
    if not destination.resolve().parent.is_dir():
        raise TargetError("there is no such folder.", where=str(destination.parent), remedy="Make it first.")


def _answer(yes: bool, name: str, given: Any, question: str, offered: Any = None, kind: Any = None) -> Any:
    """What the option says; or, with `yes`, what is offered; or what a person answers at a terminal."""
    if given is not None:
        return given
    if yes and offered is not None:
        return offered
    if yes or not sys.stdin.isatty():
        other = "" if offered is None else f", or --yes for {offered}"
        raise click.UsageError(f"--{name} is not given, and there is nobody to ask. Give it{other}.")
    return click.prompt(question, default=offered, type=kind, err=True)
