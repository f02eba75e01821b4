"""Every field that a recipe may have: where it stands, what it means, and how it is found by its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from peftkit.errors import InputError
from peftkit.recipe.advice import Advice
from peftkit.recipe.advised import ADVICE
from peftkit.recipe.installed import LibraryClass
from peftkit.recipe.names import nearest, printable
from peftkit.recipe.schema import Recipe
from peftkit.recipe.section import LibrarySection, Section
from peftkit.recipe.tree import all_sections, as_section, field_names

__all__ = ["RecipeField", "documented_fields", "find_fields"]


@dataclass(frozen=True)
class RecipeField:
    """One field of one section."""

    home: str
    """The section's dotted path; empty for the top level."""

    section: type[Section]
    name: str

    @property
    def path(self) -> str:
        """The dotted path, as `training.learning_rate`."""
        return f"{self.home}.{self.name}" if self.home else self.name

    @property
    def library(self) -> LibraryClass | None:
        """The library's class that documents the field, where peftkit passes it on as it is."""
        known = self.name in self.section.model_fields
        return None if known or not issubclass(self.section, LibrarySection) else self.section.library

    @property
    def meaning(self) -> str:
        """The field's documentation on one line: peftkit's own, or the library's."""
        if self.library:
            return self.library.argument(self.name).help or f"{self.library.name} does not say what it is."
        return " ".join((self.section.model_fields[self.name].description or "").split())

    @property
    def text(self) -> str:
        """The meaning and, on lines of their own, what is known beside it."""
        beside = self.advice.lines() if self.advice else []
        return "\n".join([self.meaning, *(f"{what}: {text}" for what, text in beside)])

    @property
    def summary(self) -> str:
        """The first sentence of the meaning."""
        sentence, stop, _ = self.meaning.partition(". ")
        return sentence + stop.strip()

    @property
    def required(self) -> bool:
        """Whether a recipe must have it."""
        return not self.library and self.section.model_fields[self.name].is_required()

    @property
    def default(self) -> Any:
        """The value where a recipe has none; None too where that is unknown, or a section of its own."""
        if self.library:
            return self.library.argument(self.name).default
        value = self.section.model_fields[self.name].get_default(call_default_factory=True)
        return None if value is PydanticUndefined or isinstance(value, Section) else value

    @property
    def advice(self) -> Advice | None:
        """What is known beside the meaning; None where nothing is."""
        return ADVICE.get(self.path)

    @property
    def inner(self) -> list[RecipeField]:
        """The documented fields of the section that the field itself is, or holds; none where it is a plain value."""
        section = None if self.library else as_section(self.section.model_fields[self.name].annotation)
        return [RecipeField(self.path, section, name) for name in section.model_fields] if section else []


def documented_fields() -> dict[str, list[RecipeField]]:
    """The fields that peftkit documents, by the dotted path of their section; a section that recurs comes once."""
    found: dict[type[Section], tuple[str, list[RecipeField]]] = {}
    for home, section in _every_section():
        fields = [RecipeField(home, section, name) for name in section.model_fields]
        found.setdefault(section, (home, fields))
    return dict(found.values())


def find_fields(name: str) -> list[RecipeField]:
    """The field at a dotted path, or every field of a bare name, those of a section that recurs once.

    Numbers in a path, of items in a list, make no difference.

    Raises:
        InputError: there is none; names the nearest one, or what to write instead.
    """
    home, _, last = ".".join(part for part in name.split(".") if not part.isdecimal()).rpartition(".")
    found: dict[tuple[type[Section], str], RecipeField] = {}
    for at, section in _every_section():
        if home in ("", at) and last in field_names(section):
            found.setdefault((section, last), RecipeField(at, section, last))
    top = [field for field in found.values() if not field.home]
    if found:
        return top or list(found.values())
    raise _unknown(name)


def _every_section() -> list[tuple[str, type[Section]]]:
    return [("", Recipe), *all_sections(Recipe)]


def _unknown(name: str) -> InputError:
    home, _, last = name.rpartition(".")
    known: list[str] = []
    for at, section in _every_section():
        if home in ("", at) and issubclass(section, LibrarySection) and last in section.owned:
            return InputError(f"is not a field of {at}.", where=printable(name), remedy=section.owned[last])
        known += [field if not home else f"{at}.{field}" for field in field_names(section)]
    guess = nearest(name, known)
    remedy = f"Did you mean {guess}?" if guess else "`peftkit explain` lists the fields."
    return InputError("is not a field of a recipe.", where=printable(name), remedy=remedy)
