"""`peftkit explain`: what a field does, what is usual, and what a recipe sets."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from peftkit import console
from peftkit.cli import options
from peftkit.metrics import METRICS
from peftkit.recipe.advice import shown
from peftkit.recipe.fields import Explained, RecipeField, documented_fields, explain_field, explain_recipe, find_fields
from peftkit.recipe.library import find_recipe

if TYPE_CHECKING:
    from peftkit.recipe.loader import RecipeFile

__all__ = ["command"]

_WIDTH = 100


@click.command("explain")
@click.argument("field", required=False)
@click.option("--recipe", metavar="RECIPE", help="Say what this recipe sets, and whether that is usual.")
@options.method
@options.overrides
@options.as_json
def command(
    field: str | None, recipe: str | None, method: str | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """What FIELD does, which values are usual and who used them, and what higher and lower ones do.

    FIELD is a name, as learning_rate, a path, as lora.r, or a section, as training; or a metric, as perplexity.
    Arguments that peftkit passes on to Transformers, PEFT or bitsandbytes are explained in the library's own words.
    Without FIELD, every documented field is listed; with --recipe, every value of the recipe: who set it,
    and why that is usual or not.

    \b
    Examples:
      peftkit explain
      peftkit explain learning_rate
      peftkit explain lora --recipe my.yaml --method qlora
      peftkit explain --recipe my.yaml
    """
    if (method or overrides) and not recipe:
        raise click.UsageError("--method and --set change a recipe: give --recipe.")
    if field and field in METRICS:
        metric, unit = METRICS[field], f", in {METRICS[field].unit}" if METRICS[field].unit else ""
        if as_json:
            console.print_json(asdict(metric) | {"direction": metric.direction})
        else:
            console.print_text(f"{metric.name}\n  {metric.meaning}\n  {metric.label}{unit}: {metric.direction}")
        return
    fields = find_fields(field) if field else []
    file = None
    if recipe:
        from peftkit.recipe.loader import load_recipe  # pydantic and YAML take as long as all the rest

        file = load_recipe(find_recipe(recipe), method=method, overrides=overrides)
    if as_json:
        asked = [each for found in fields for each in found.inner or [found]]
        asked = asked or [each for group in documented_fields().values() for each in group]
        lines = [asdict(line) for line in _lines(file, fields)] if file else None
        console.print_json({"fields": [_record(each) for each in asked], "recipe": lines})
    elif fields:
        for number, found in enumerate(fields):
            if number:
                console.print_text("")
            _print_field(found, file)
    elif file:
        _print_lines(_lines(file, []), file)
    else:
        for home, group in documented_fields().items():
            _print_summaries(f"\n{home}" if home else "recipe", group)


def _lines(file: RecipeFile, fields: list[RecipeField]) -> list[Explained]:
    """What a recipe says in some fields; everything that it says where none is named."""
    return [line for field in fields for line in explain_field(file, field)] if fields else explain_recipe(file)


def _print_field(field: RecipeField, file: RecipeFile | None) -> None:
    console.print_text(f"{field.path}\n  {field.meaning}")
    if field.inner:
        console.print_text("")
        _print_lines(_lines(file, [field]), file) if file else _print_summaries(None, field.inner)
        return
    parts = [("default", "none: it must be given" if field.required else shown(field.default))]
    if field.library:
        parts.append(("from", f"{field.library.name}, whose own words these are; peftkit passes it on as it is"))
    parts += field.advice.lines() if field.advice else []
    for line in _lines(file, [field]) if file else []:
        parts.append(("here", f"{shown(line.value)}, set by {line.set_by}: {line.why}"))
    width = max(len(name) for name, _ in parts)
    for name, text in parts:
        console.print_text(f"  {name.ljust(width)}  {text}")


def _print_summaries(title: str | None, fields: list[RecipeField]) -> None:
    """A line for each field, laid out by click: Rich takes longer for it than all the rest of the command."""
    formatter = click.HelpFormatter(width=min(shutil.get_terminal_size().columns, _WIDTH))
    if title:
        formatter.write(f"{title}\n")
    with formatter.indentation():
        formatter.write_dl([(field.name, field.summary) for field in fields])
    console.print_text(formatter.getvalue().rstrip("\n"))


def _print_lines(lines: list[Explained], file: RecipeFile) -> None:
    """A recipe's fields as lines, for tables have no room for reasons."""
    console.print_text(f"# {file.path}, method: {file.recipe.method}")
    for line in lines:
        place = line.set_by.replace(f"{file.path}:", "line ")
        console.print_text(f"{line.field}: {shown(line.value)}  # {place}\n    {line.why}")


def _record(field: RecipeField) -> dict[str, Any]:
    advice = field.advice
    return {
        "field": field.path,
        "meaning": field.meaning,
        "documented_by": field.library.name if field.library else "peftkit",
        "required": field.required,
        "default": field.default,
        "usual": advice.usual_texts() if advice else [],
        "effects": advice.effects if advice else {},
    }
