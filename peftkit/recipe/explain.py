"""What a recipe says, field by field, and whether that is usual."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peftkit.recipe.advice import Between, Verdict, kind_of, shown
from peftkit.recipe.advised import ADVICE
from peftkit.recipe.document import Path, dotted
from peftkit.recipe.fields import RecipeField
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.methods import unused_sections
from peftkit.recipe.schema import Recipe
from peftkit.recipe.section import Section, as_section

__all__ = ["Explained", "explain_field", "explain_recipe", "set_fields", "why_idle"]

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
    """What a recipe says in one field: once for each item of a list, and all of a section."""
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


_IN_HEADINGS = ("name", "description", "method")
"""Fields that a report and a card show at their top."""

_NO_BETAS = ("sgd", "adafactor", "adagrad", "rmsprop")
"""Optimizers, as their names begin, that do not read AdamW's fields."""


def set_fields(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The fields of a recipe that say something, by section and by name in it, in the schema's order.

    These are all that differ from their defaults, and every hyperparameter (a field with advice) that has a value. Left
    out is what does not act: sections that the method does not use, and the name, description and method themselves.
    """
    groups: dict[str, dict[str, Any]] = {}
    for path, value, is_default in _leaves(values, Recipe, ()):
        field = dotted(tuple(part for part in path if isinstance(part, str)))
        if value in (None, [], {}) or (is_default and field not in ADVICE) or field in _IN_HEADINGS:
            continue
        if why_idle(values, field) is None:
            home = str(path[0]) if len(path) > 1 else "recipe"
            groups.setdefault(home, {})[dotted(path[1:] or path)] = value
    return groups


def why_idle(values: Mapping[str, Any], field: str) -> str | None:
    """Why a field, by its dotted path without numbers, does not act in a run of these values; None if it does."""
    method, section = values.get("method", ""), field.partition(".")[0]
    training, quantization = values.get("training") or {}, values.get("quantization") or {}
    has_steps = (training.get("max_steps") or -1) != -1
    optimizer = str(training.get("optim"))
    if section in unused_sections(method):
        return f"not used by method: {method}"
    if field == "training.num_train_epochs" and has_steps:
        return "not used: max_steps says where the run ends"
    if field == "training.max_steps" and not has_steps:
        return "not set: num_train_epochs says where the run ends"
    if field.startswith("training.adam_") and optimizer.startswith(_NO_BETAS):
        return f"not used by optim: {optimizer}"
    if field.startswith("quantization.bnb_4bit") and quantization.get("load_in_8bit"):
        return "not used: load_in_8bit says that there are no 4-bit numbers"
    return None


def _leaves(values: Mapping[str, Any], section: type[Section] | None, path: Path) -> Iterator[tuple[Path, Any, bool]]:
    """The path and value of every field that is no section, and whether the value is the field's default."""
    known = section.model_fields if section else {}
    for name in [*(name for name in known if name in values), *(name for name in values if name not in known)]:
        value, here, info = values[name], (*path, name), known.get(name)
        inner = as_section(info.annotation) if info else None
        items = value if isinstance(value, list) else []
        if inner and isinstance(value, dict):
            yield from _leaves(value, inner, here)
        elif inner and items and all(isinstance(item, dict) for item in items):
            for number, item in enumerate(items):
                yield from _leaves(item, inner, (*here, number))
        else:
            yield here, value, info is not None and value == info.get_default(call_default_factory=True)
