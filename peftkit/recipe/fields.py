"""Every field that a recipe may have: its place, its meaning, and how it is found by its name.

It is read from the JSON Schema that comes with the package, which a test compares with the models: `peftkit explain`
does without pydantic.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit.errors import InputError, nearest, printable
from peftkit.recipe.advice import Advice
from peftkit.recipe.advised import ADVICE
from peftkit.recipe.libraries import BITSANDBYTES_CONFIG, LORA_CONFIG, TRAINING_ARGUMENTS, LibraryClass
from peftkit.recipe.names import LORA_OWNED, QUANTIZATION_OWNED, TRAINING_REFUSED

__all__ = ["PASSED_ON", "RecipeField", "documented_fields", "find_fields"]

PASSED_ON = "passed on as it is."
"""How the schema describes, at the end, an argument that peftkit leaves to a library."""

_SCHEMA = Path(__file__).resolve().parents[1] / "assets" / "recipe.schema.json"
_LIBRARIES: Mapping[str, tuple[LibraryClass, Mapping[str, str]]] = {
    "training": (TRAINING_ARGUMENTS, TRAINING_REFUSED),
    "lora": (LORA_CONFIG, LORA_OWNED),
    "quantization": (BITSANDBYTES_CONFIG, QUANTIZATION_OWNED),
}
"""The sections that pass arguments on: to which class, and which of them are refused, with what to write instead."""


@dataclass(frozen=True)
class RecipeField:
    """One field of one section."""

    home: str
    """The section's dotted path; empty for the top level."""

    name: str

    @property
    def path(self) -> str:
        """The dotted path, as `training.learning_rate`."""
        return f"{self.home}.{self.name}" if self.home else self.name

    @property
    def library(self) -> LibraryClass | None:
        """The library's class that documents the field, where peftkit passes it on as it is."""
        known = self.name in _sections()[self.home].documented
        return None if known or self.home not in _LIBRARIES else _LIBRARIES[self.home][0]

    @property
    def meaning(self) -> str:
        """The field's documentation on one line: peftkit's own, or the library's."""
        if self.library:
            return self.library.argument(self.name).help or f"{self.library.name} does not say what it is."
        meaning, _, _ = str(self._documented["description"]).partition("\n")
        return meaning

    @property
    def summary(self) -> str:
        """The first sentence of the meaning."""
        sentence, stop, _ = self.meaning.partition(". ")
        return sentence + stop.strip()

    @property
    def required(self) -> bool:
        """Whether a recipe must have it."""
        return self.name in _sections()[self.home].required

    @property
    def default(self) -> Any:
        """The value where a recipe has none; None too where that is unknown, or a section of its own."""
        if self.library:
            return self.library.argument(self.name).default
        return None if "$ref" in self._documented else self._documented.get("default")

    @property
    def advice(self) -> Advice | None:
        """What is known beside the meaning; None where nothing is."""
        return ADVICE.get(self.path)

    @property
    def inner(self) -> list[RecipeField]:
        """The documented fields of the section that the field itself is, or holds; none where it is a plain value."""
        section = _sections().get(self.path)
        return [RecipeField(self.path, name) for name in section.documented] if section else []

    @property
    def _documented(self) -> Any:
        return _sections()[self.home].documented[self.name]


@dataclass(frozen=True)
class _Section:
    """What the schema says of a section."""

    kind: str
    """The name of its definition: a section that recurs has the same everywhere."""

    documented: dict[str, Any]
    """The schema of each field that peftkit documents."""

    passed_on: tuple[str, ...]
    """The fields that it leaves to a library."""

    required: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All that it takes."""
        return (*self.documented, *self.passed_on)


def documented_fields() -> dict[str, list[RecipeField]]:
    """The fields that peftkit documents, by the dotted path of their section; a section that recurs comes once."""
    found: dict[str, tuple[str, list[RecipeField]]] = {}
    for home, section in _sections().items():
        found.setdefault(section.kind, (home, [RecipeField(home, name) for name in section.documented]))
    return dict(found.values())


def find_fields(name: str) -> list[RecipeField]:
    """The field at a dotted path, or every field of a bare name, those of a section that recurs once.

    Numbers in a path, of items in a list, make no difference.

    Raises:
        InputError: there is none; names the nearest one, or what to write instead.
    """
    home, _, last = ".".join(part for part in name.split(".") if not part.isdecimal()).rpartition(".")
    found: dict[str, RecipeField] = {}
    for at, section in _sections().items():
        if home in ("", at) and last in section.names:
            found.setdefault(section.kind, RecipeField(at, last))
    top = [field for field in found.values() if not field.home]
    if found:
        return top or list(found.values())
    raise _unknown(name)


@functools.cache
def _sections() -> dict[str, _Section]:
    """Every section by its dotted path, each before those in it."""
    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    return dict(_walk("", "Recipe", schema, schema["$defs"]))


def _walk(home: str, kind: str, schema: Any, definitions: Any) -> Iterator[tuple[str, _Section]]:
    fields = schema["properties"]
    passed_on = tuple(name for name, field in fields.items() if field["description"].endswith(PASSED_ON))
    documented = {name: field for name, field in fields.items() if name not in passed_on}
    yield home, _Section(kind, documented, passed_on, tuple(schema.get("required", ())))
    for name, field in documented.items():
        inner = _section_in(field)
        if inner:
            yield from _walk(f"{home}.{name}" if home else name, inner, definitions[inner], definitions)


def _section_in(field: Any) -> str | None:
    """The definition that a field's value is of, or an alternative of it, or its items."""
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    inner = [*field.get("anyOf", ()), *([field["items"]] if "items" in field else ())]
    return next((found for each in inner if (found := _section_in(each))), None)


def _unknown(name: str) -> InputError:
    home, _, last = name.rpartition(".")
    known: list[str] = []
    for at, section in _sections().items():
        refused = _LIBRARIES[at][1] if at in _LIBRARIES else {}
        if home in ("", at) and last in refused:
            return InputError(f"is not a field of {at}.", where=printable(name), remedy=refused[last])
        known += [field if not home else f"{at}.{field}" for field in section.names]
    guess = nearest(name, known)
    remedy = f"Did you mean {guess}?" if guess else "`peftkit explain` lists the fields."
    return InputError("is not a field of a recipe.", where=printable(name), remedy=remedy)
