"""What pydantic finds wrong with a recipe, in a user's words."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from peftkit.errors import Problem, nearest
from peftkit.recipe.document import Path, dotted, is_number
from peftkit.recipe.layers import Layers
from peftkit.recipe.schema import Recipe
from peftkit.recipe.section import LibrarySection, Section, all_sections, field_names, section_at

__all__ = ["describe", "found"]

_WANTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
}


def describe(error: ValidationError, layers: Layers, name: str, root: type[Section] = Recipe) -> list[Problem]:
    """Each thing that is wrong, once, at the place where it was written.

    Args:
        error: what pydantic found.
        layers: the values that were checked.
        name: the file's.
        root: what the whole file is.
    """
    details: dict[Path, list[Any]] = {}
    for detail in error.errors(include_url=False):
        details.setdefault(_written(detail["loc"], layers.values, detail["type"]), []).append(detail)
    above = {path[:end] for path in details for end in range(len(path))}
    problems: list[Problem] = []
    for path, wrong in details.items():
        kinds = {detail["type"] for detail in wrong}
        if kinds <= _WANTED.keys() and path in above:
            continue  # of the kinds that the field may have, one fits but for an item in it
        where, field = layers.place(path, name)
        what, remedy = _message(wrong[0], path, root)
        if len(kinds) > 1 and kinds <= _WANTED.keys():  # a field that may be of two kinds is wrong for both
            what = f"is {found(wrong[0]['input'])}, but must be {_either(kinds)}."
        problems.append(Problem(where, field, what, remedy))
    return problems


def _either(kinds: set[str]) -> str:
    wanted = sorted({_WANTED[kind] for kind in kinds} - ({"a whole number"} if "float_type" in kinds else set()))
    return " or ".join(wanted)


def _written(location: Path, values: Any, kind: str) -> Path:
    """The part of pydantic's location that the recipe shows; the rest names kinds of a union."""
    path: list[str | int] = []
    for part in location:
        present = isinstance(values, dict) and part in values
        item = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if not present and not item:
            if kind in ("missing", "disagreement") and (isinstance(part, int) or part.islower()):
                path.append(part)  # a name; those of classes are not in lower case
            continue
        path.append(part)
        values = values[part]
    return tuple(path)


def _message(detail: Any, path: Path, root: type[Section]) -> tuple[str, str | None]:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown(path, root)
    if kind == "missing":
        return "is missing.", "Add it."
    if kind in ("value_error", "disagreement"):
        return detail["msg"].removeprefix("Value error, "), None
    wanted = re.sub(r"^Input should be ", "", detail["msg"])
    if kind == "literal_error":
        options = re.findall(r"'([^']+)'", wanted)
        guess = nearest(value, options) if isinstance(value, str) else None
        return f"is {found(value)}, but must be {wanted}.", f"Did you mean {guess}?" if guess else "Choose one."
    wanted = _WANTED.get(kind, wanted).removeprefix("a valid ")
    remedy = "Change the value."
    if kind in ("float_type", "int_type") and isinstance(value, str) and is_number(value):
        remedy = "Write it without quotes."
    if kind == "string_pattern_mismatch":
        wanted, remedy = "letters, digits, dots, dashes and underscores", "Choose another name."
    return f"is {found(value)}, but must be {wanted}.", remedy


def found(value: Any) -> str:
    """A value as a recipe's author sees it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def _unknown(path: Path, root: type[Section]) -> tuple[str, str]:
    """What to say about a name that its section does not have."""
    section, name = section_at(root, path[:-1]), str(path[-1])
    what = f"there is no {name} in {dotted(path[:-1]) or f'a {root.__name__.lower()}'}."
    if section is None:
        return what, "Remove it."
    if issubclass(section, LibrarySection) and name in section.owned:
        return what, section.owned[name]
    home = _home(name, dotted(path[:-1]), root)
    if home:
        return what, home
    guess = nearest(name, field_names(section))
    if guess:
        return what, f"Did you mean {guess}?"
    return what, f"There are: {', '.join(section.model_fields)}."


def _home(name: str, here: str, root: type[Section]) -> str | None:
    """What to do with a name that another section has, or refuses with a remedy; those below `here` come first."""
    sections = sorted(all_sections(root), key=lambda entry: not entry[0].startswith(f"{here}."))
    if here and name in root.model_fields and not sections[0][0].startswith(f"{here}."):
        return "It belongs at the top level."
    homes = [home for home, section in sections if name in field_names(section)]
    if homes:
        near = [home for home in homes if here and home.startswith(f"{here}.")]
        return f"It belongs in {' or '.join(near[:1] or homes[:2])}."
    for home, section in sections:
        if issubclass(section, LibrarySection) and name in section.owned:
            remedy = section.owned[name]
            return f"In {home}, use {remedy.removeprefix('Use ')}" if remedy.startswith("Use ") else remedy
    return None
