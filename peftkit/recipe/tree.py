"""The sections of a file and what stands in them, walked by their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args, get_origin

from peftkit.recipe.document import Path
from peftkit.recipe.section import LibrarySection, Section

__all__ = ["all_sections", "as_section", "field_names", "section_at"]


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
