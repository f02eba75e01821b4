"""What a recipe says, field by field, and whether that is usual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peftkit.recipe.advice import Between, Verdict, kind_of, shown
from peftkit.recipe.document import Path
from peftkit.recipe.fields import RecipeField
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.schema import Recipe
from peftkit.recipe.section import Section
from peftkit.recipe.settings import why_idle

__all__ = ["Explained", "explain_field", "explain_recipe"]

_PLACES = {"usual": "as usual,", "below": "below the usual", "above": "above the usual", "other": "beside the usual"}


@dataclass(frozen=True)
class Explained:
    """One field of a resolved recipe."""

    field: str
    """The dotted path, with the number of an item where it is a list's."""

    value: Any
    set_by: str
    """File and line, or the option; `default` where nobody set it."""

    verdict: Verdict | None
    """Where the value lies beside the usual ones; None where nothing is usual, or the field does not act."""

    why: str
    """On one line: the verdict with its source, or else what the field is."""


def explain_recipe(file: RecipeFile) -> list[Explained]:
    """Every field of a resolved recipe; what is empty by default is left out."""
    return list(_walk(file, file.recipe, "", ()))


def explain_field(file: RecipeFile, field: RecipeField) -> list[Explained]:
    """What a recipe says in one field: once for each item where that stands in a list, and all of a section."""
    parts = field.path.split(".")
    lines = explain_recipe(file)
    named = [
        line
        for line in lines
        if [part for part in line.field.split(".") if not part.isdecimal()][: len(parts)] == parts
    ]
    if named or field.inner:
        return named
    return [_explained(file, field, (*parts,), field.default)]


def _walk(file: RecipeFile, section: Section, home: str, path: Path) -> Iterator[Explained]:
    for name in [*type(section).model_fields, *(section.model_extra or {})]:
        value, field, here = getattr(section, name), RecipeField(home, name), (*path, name)
        items = value if isinstance(value, list) else []
        if isinstance(value, Section):
            yield from _walk(file, value, field.path, here)
        elif any(isinstance(item, Section) for item in items):
            for number, item in enumerate(items):
                yield from _walk(file, item, field.path, (*here, number))
        elif here in file.layers.origins or value not in (None, [], {}):
            yield _explained(file, field, here, value)


def _explained(file: RecipeFile, field: RecipeField, path: Path, value: Any) -> Explained:
    origin = file.layers.origins.get(path)
    verdict, why = _judged(file.recipe, field, value)
    return Explained(".".join(map(str, path)), value, origin.where if origin else "default", verdict, why)


def _judged(recipe: Recipe, field: RecipeField, value: Any) -> tuple[Verdict | None, str]:
    idle = why_idle(recipe.model_dump(include={"method", "training", "quantization"}), field.path)
    if idle:
        return None, idle
    advice = field.advice
    usual = advice.usual_for(kind_of(recipe)) if advice else None
    if advice is None or usual is None or (value is None and isinstance(usual, Between)):
        return None, field.summary
    measure = advice.measure
    figure = measure.of(recipe) if measure else value
    if measure and figure is None:
        return None, f"usual is {measure.name} {usual} ({usual.source}), which is known once the data is read"
    verdict = usual.verdict(figure)
    stated = f"{measure.name} {shown(figure)}: " if measure else ""
    effect = advice.named.get(shown(value)) or {"below": advice.lower, "above": advice.higher}.get(verdict)
    effect = None if verdict == "usual" else effect
    return verdict, f"{stated}{_PLACES[verdict]} {usual} ({usual.source}){f': {effect}' if effect else ''}"
