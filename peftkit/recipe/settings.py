"""What a recipe sets, by section, for reports and cards: every field that is set, whether peftkit documents it or not.

The values are a recipe's as plain data, unchecked: a run stays readable when fields have been renamed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from peftkit.recipe.advised import ADVICE
from peftkit.recipe.document import Path, dotted
from peftkit.recipe.schema import UNUSED_SECTIONS, Recipe
from peftkit.recipe.section import Section
from peftkit.recipe.tree import as_section

__all__ = ["set_fields", "why_idle"]

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
    if section in UNUSED_SECTIONS.get(method, ()):
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
