"""Every field that a recipe may have: its place, its meaning, what a recipe says in it, and whether that is usual.

Fields are read from the JSON Schema that comes with the package, which a test compares with the models, so that
`peftkit explain` needs no pydantic.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import InputError, nearest, printable
from peftkit.recipe.advice import Advice, Between, Verdict, shown
from peftkit.recipe.libraries import LIBRARIES, LibraryClass
from peftkit.recipe.methods import ADVICE, unused_sections

if TYPE_CHECKING:
    from peftkit.recipe.loader import RecipeFile
    from peftkit.recipe.schema import Recipe

__all__ = [
    "PASSED_ON", "SCHEMA", "Explained", "RecipeField", "documented_fields", "explain_field", "explain_recipe",
    "find_fields", "set_fields", "why_idle",
]  # fmt: skip

PASSED_ON = "passed on as it is."
"""How the schema describes, at the end, an argument that peftkit leaves to a library."""

SCHEMA = Path(__file__).resolve().parents[1] / "assets" / "recipe.schema.json"


@dataclass(frozen=True)
class RecipeField:
    """One field of one section."""

    home: str  # the section's dotted path; empty for the top level
    name: str

    @property
    def path(self) -> str:
        """The dotted path, as `training.learning_rate`."""
        return f"{self.home}.{self.name}" if self.home else self.name

    @property
    def library(self) -> LibraryClass | None:
        """The library's class that documents the field, where peftkit passes it on as it is."""
        return None if self.name in _sections()[self.home].documented else LIBRARIES.get(self.home)

    @property
    def meaning(self) -> str:
        """The field's documentation on one line: peftkit's own, or the library's."""
        if self.library:
            return self.library.argument(self.name).help or f"{self.library.name} does not say what it is."
        return str(self._documented["description"]).partition("\n")[0]

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
        """What is known besides the meaning; None where nothing is."""
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

    kind: str  # the name of its definition: a section that recurs has the same everywhere
    documented: dict[str, Any]  # the schema of each field that peftkit documents
    passed_on: tuple[str, ...]  # the fields that it leaves to a library
    required: tuple[str, ...]


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
        if home in ("", at) and (last in section.documented or last in section.passed_on):
            found.setdefault(section.kind, RecipeField(at, last))
    top = [field for field in found.values() if not field.home]
    if found:
        return top or list(found.values())
    raise _unknown(name)


@functools.cache
def _sections() -> dict[str, _Section]:
    """Every section by its dotted path, each before those in it."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
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
        refused = LIBRARIES[at].owned if at in LIBRARIES else {}
        if home in ("", at) and last in refused:
            return InputError(f"is not a field of {at}.", where=printable(name), remedy=refused[last])
        known += [field if not home else f"{at}.{field}" for field in (*section.documented, *section.passed_on)]
    guess = nearest(name, known)
    remedy = f"Did you mean {guess}?" if guess else "`peftkit explain` lists the fields."
    return InputError("is not a field of a recipe.", where=printable(name), remedy=remedy)


@dataclass(frozen=True)
class Explained:
    """One field of a resolved recipe."""

    field: str  # the dotted path, with the number of an item where it is a list's
    value: Any
    set_by: str  # file and line, or the option; `default` where nobody set it
    verdict: Verdict | None
    """Where the value lies relative to the usual ones; None where nothing is usual, or the field does not act."""

    why: str  # on one line: the verdict with its source, or else what the field is


def explain_recipe(file: RecipeFile) -> list[Explained]:
    """Every field of a resolved recipe; what is empty by default is left out."""
    values = file.recipe.model_dump()
    return [
        _explained(file, field, path, value, why_idle(values, field.path))
        for path, field, value in _leaves(values, "", ())
        if path in file.layers.origins or value not in (None, [], {})
    ]


def explain_field(file: RecipeFile, field: RecipeField) -> list[Explained]:
    """What a recipe says in one field: once for each item of a list, and all of a section."""
    parts = field.path.split(".")
    lines = [(line, [part for part in line.field.split(".") if not part.isdecimal()]) for line in explain_recipe(file)]
    named = [line for line, names in lines if names[: len(parts)] == parts]
    if named or field.inner:
        return named
    return [_explained(file, field, (*parts,), field.default, why_idle(file.recipe.model_dump(), field.path))]


_Path = tuple[str | int, ...]


def _explained(file: RecipeFile, field: RecipeField, path: _Path, value: Any, idle: str | None) -> Explained:
    origin = file.layers.origins.get(path)
    verdict, why = (None, idle) if idle else _judged(file.recipe, field, value)
    return Explained(".".join(map(str, path)), value, origin.where if origin else "default", verdict, why)


_PLACES = {
    "usual": "as usual,",
    "below": "below the usual",
    "above": "above the usual",
    "other": "other than the usual",
}


def _judged(recipe: Recipe, field: RecipeField, value: Any) -> tuple[Verdict | None, str]:
    advice = field.advice
    usual = advice.usual_for("new" if recipe.base.init else recipe.method) if advice else None
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
    for path, field, value in _leaves(values, "", ()):
        known = _sections()[field.home].documented.get(field.name, {})
        is_default = "default" in known and value == known["default"] and field.path not in ADVICE
        if value in (None, [], {}) or is_default or field.path in _IN_HEADINGS:
            continue
        if why_idle(values, field.path) is None:
            home = str(path[0]) if len(path) > 1 else "recipe"
            groups.setdefault(home, {})[".".join(map(str, path[1:] or path))] = value
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


def _leaves(values: Mapping[str, Any], home: str, path: _Path) -> Iterator[tuple[_Path, RecipeField, Any]]:
    """Path, field and value of everything in a section's values that is no section itself."""
    known = _sections()[home].documented
    for name in [*(name for name in known if name in values), *(name for name in values if name not in known)]:
        value, field, here = values[name], RecipeField(home, name), (*path, name)
        if field.path not in _sections() or not isinstance(value, dict | list):
            yield here, field, value
        elif isinstance(value, dict):
            yield from _leaves(value, field.path, here)
        elif not value or not all(isinstance(item, dict) for item in value):
            yield here, field, value
        else:
            for number, item in enumerate(value):
                yield from _leaves(item, field.path, (*here, number))
