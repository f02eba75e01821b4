"""What every section of a recipe has in common, and how sections are found by their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NoReturn, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, TypeAdapter, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from peftkit.recipe.document import Path
from peftkit.recipe.libraries import LibraryClass

__all__ = ["LibrarySection", "Section", "all_sections", "as_section", "disagree", "field_names", "section_at"]


def disagree(*found: tuple[str, str]) -> NoReturn:
    """End a section's validation: its fields do not fit together.

    Args:
        found: the field that each message is about, dotted from the section, and the message.

    Raises:
        ValidationError: all of them; pydantic takes them over with their places.
    """
    errors: list[InitErrorDetails] = [
        {
            "type": PydanticCustomError("disagreement", "{text}", {"text": message}),
            "loc": tuple(field.split(".")),
            "input": None,
        }
        for field, message in found
    ]
    raise ValidationError.from_exception_data("section", errors)


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
    owned: ClassVar[Mapping[str, str]]
    """Names that are refused, with what to write instead."""

    @classmethod
    def passed_through_types(cls) -> dict[str, Any]:
        """Name and type of every library argument that this section takes without documenting it."""
        types = cls.library.argument_types()
        return {name: kind for name, kind in types.items() if name not in cls.model_fields and name not in cls.owned}

    @model_validator(mode="wrap")
    @classmethod
    def _check_passed_through(cls, value: Any, validate: ModelWrapValidatorHandler[Any]) -> Any:
        extras = (
            {name: item for name, item in value.items() if name not in cls.model_fields}
            if isinstance(value, dict)
            else {}
        )
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
            if name in cls.owned or name not in known:
                errors.append({"type": "extra_forbidden", "loc": (name,), "input": item})
                continue
            try:
                TypeAdapter(known[name], config=_LIBRARY_TYPES).validate_python(item, strict=True)
            except ValidationError as error:
                errors += [_again(detail, name) for detail in error.errors(include_url=False)]
        return errors


_LIBRARY_TYPES = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)


def _again(detail: Any, name: str | None = None) -> InitErrorDetails:
    """An error detail as an input for a new error, below `name` if given."""
    location = detail["loc"] if name is None else (name,)
    kind: Any = detail["type"]
    if kind in ("extra_forbidden", "missing"):
        return {"type": kind, "loc": location, "input": detail["input"]}
    error = PydanticCustomError(kind, "{text}", {"text": detail["msg"]})
    return {"type": error, "loc": location, "input": detail["input"]}


def field_names(section: type[Section]) -> list[str]:
    """The names that a section takes: its own and, after them, those that it passes on to its library."""
    passed = section.passed_through_types() if issubclass(section, LibrarySection) else {}
    return [*section.model_fields, *passed]


def all_sections(section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """Every section below a section, by dotted path, each before those in it."""
    for field, inner in _sections(section):
        yield field, inner
        yield from ((f"{field}.{deeper}", at) for deeper, at in all_sections(inner))


def section_at(section: type[Section], path: Path) -> type[Section] | None:
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


def as_section(annotation: Any) -> type[Section] | None:
    """The section that a type is, or has among its alternatives or items."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for inner in get_args(annotation) if (found := as_section(inner))), None)


def _sections(section: type[Section]) -> Iterable[tuple[str, type[Section]]]:
    """The sections directly in a section, by field."""
    for field, info in section.model_fields.items():
        inner = as_section(info.annotation)
        if inner:
            yield field, inner
