"""What every section of a recipe has in common, and what pydantic finds wrong with one, in a user's words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from peftkit.errors import Problem, nearest
from peftkit.recipe.document import Path, dotted, is_number
from peftkit.recipe.libraries import LibraryClass

if TYPE_CHECKING:
    from peftkit.recipe.loader import Layers

__all__ = ["LibrarySection", "Positive", "Section", "all_sections", "describe", "disagree", "found"]


def disagree(*found: tuple[str, str]) -> None:
    """End a section's validation if fields do not fit together: each is given dotted from the section, with a message.

    Raises:
        ValidationError: all of them; pydantic takes them over with their places.
    """
    if not found:
        return
    raised = [(field, PydanticCustomError("disagreement", "{text}", {"text": message})) for field, message in found]
    paths = [tuple(int(part) if part.isdigit() else part for part in field.split(".")) for field, _ in raised]
    errors = [
        InitErrorDetails(type=error, loc=path, input=None) for path, (_, error) in zip(paths, raised, strict=True)
    ]
    raise ValidationError.from_exception_data("section", errors)


Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A part of a recipe: frozen, strict about types, and without room for a name it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class LibrarySection(Section):
    """A section that takes, besides its own documented fields, every other argument of one library class.

    Those arguments are checked against the newest supported version of the library: a name that it does not have is an
    error like any other unknown name, and so is a value of the wrong type.
    """

    model_config = ConfigDict(extra="allow")

    library: ClassVar[LibraryClass]

    @classmethod
    def passed_through_types(cls) -> dict[str, Any]:
        """Name and type of every library argument that this section takes without documenting it."""
        types, left_out = cls.library.argument_types(), cls.model_fields.keys() | cls.library.owned.keys()
        return {name: kind for name, kind in types.items() if name not in left_out}

    @model_validator(mode="wrap")
    @classmethod
    def _check_passed_through(cls, value: Any, validate: ModelWrapValidatorHandler[Any]) -> Any:
        given = value if isinstance(value, dict) else {}
        extras = {name: item for name, item in given.items() if name not in cls.model_fields}
        errors = cls._extra_errors(extras) if extras else []
        try:
            section = validate(value)
        except ValidationError as error:
            errors += [_again(detail) for detail in error.errors(include_url=False)]
        if errors:
            # pydantic takes the details of a nested error over as its own, each with its place
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return section

    @classmethod
    def _extra_errors(cls, extras: Mapping[str, Any]) -> list[InitErrorDetails]:
        known = cls.passed_through_types()
        errors: list[InitErrorDetails] = []
        for name, item in extras.items():
            if name not in known:
                errors.append(InitErrorDetails(type="extra_forbidden", loc=(name,), input=item))
                continue
            try:
                TypeAdapter(known[name], config=_LIBRARY_TYPES).validate_python(item, strict=True)
            except ValidationError as error:
                errors += [_again(detail, name) for detail in error.errors(include_url=False)]
        return errors


_LIBRARY_TYPES = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)


def _again(detail: Any, name: str | None = None) -> InitErrorDetails:
    """An error detail as an input for a new error, below `name` if given."""
    kind: Any = detail["type"]
    if kind not in ("extra_forbidden", "missing"):
        kind = PydanticCustomError(kind, "{text}", {"text": detail["msg"]})
    return InitErrorDetails(type=kind, loc=detail["loc"] if name is None else (name,), input=detail["input"])


def _field_names(section: type[Section]) -> list[str]:
    """The names that a section takes: its own and, after them, those that it passes on to its library."""
    passed = section.passed_through_types() if issubclass(section, LibrarySection) else {}
    return [*section.model_fields, *passed]


def all_sections(section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """Every section below a section, by dotted path, each before those in it."""
    for field, inner in _sections(section):
        yield field, inner
        yield from ((f"{field}.{deeper}", at) for deeper, at in all_sections(inner))


def _section_at(section: type[Section], path: Path) -> type[Section] | None:
    """The section at a path; None where there is none."""
    keyed = False
    for part in path:
        if isinstance(part, int) or keyed:  # an item of a list or a mapping of sections
            keyed = False
            continue
        inner = dict(_sections(section)).get(str(part))
        if inner is None:
            return None
        keyed = get_origin(section.model_fields[str(part)].annotation) is dict
        section = inner
    return section


def _as_section(annotation: Any) -> type[Section] | None:
    """The section that a type is, or has among its alternatives or items."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _as_section(inner))), None)


def _sections(section: type[Section]) -> Iterable[tuple[str, type[Section]]]:
    """The sections directly in a section, by field."""
    for field, info in section.model_fields.items():
        inner = _as_section(info.annotation)
        if inner:
            yield field, inner


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


def describe(error: ValidationError, layers: Layers, name: str, root: type[Section]) -> list[Problem]:
    """Each thing that pydantic found wrong in a file of `root`'s fields, once, at the place where it was written."""
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
            wanted = {_WANTED[kind] for kind in kinds} - ({"a whole number"} if "float_type" in kinds else set())
            what = f"is {found(wrong[0]['input'])}, but must be {' or '.join(sorted(wanted))}."
        problems.append(Problem(where, field, what, remedy))
    return problems


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
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _unknown(path: Path, root: type[Section]) -> tuple[str, str]:
    """What to say about a name that its section does not have."""
    section, name = _section_at(root, path[:-1]), str(path[-1])
    what = f"there is no {name} in {dotted(path[:-1]) or f'a {root.__name__.lower()}'}."
    if section is None:
        return what, "Remove it."
    if issubclass(section, LibrarySection) and name in section.library.owned:
        return what, section.library.owned[name]
    home = _home(name, dotted(path[:-1]), root)
    if home:
        return what, home
    guess = nearest(name, _field_names(section))
    return what, f"Did you mean {guess}?" if guess else f"There are: {', '.join(section.model_fields)}."


def _home(name: str, here: str, root: type[Section]) -> str | None:
    """What to do with a name that another section has, or refuses with a remedy; those below `here` come first."""
    sections = sorted(all_sections(root), key=lambda entry: not entry[0].startswith(f"{here}."))
    if here and name in root.model_fields and not sections[0][0].startswith(f"{here}."):
        return "It belongs at the top level."
    homes = [home for home, section in sections if name in _field_names(section)]
    if homes:
        near = [home for home in homes if here and home.startswith(f"{here}.")]
        return f"It belongs in {' or '.join(near[:1] or homes[:2])}."
    for home, section in sections:
        if issubclass(section, LibrarySection) and name in section.library.owned:
            remedy = section.library.owned[name]
            return f"In {home}, use {remedy.removeprefix('Use ')}" if remedy.startswith("Use ") else remedy
    return None
