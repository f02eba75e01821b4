"""The recipe as a JSON Schema, for editors that complete and check while one writes."""

from __future__ import annotations

import json
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from peftkit.recipe.advised import ADVICE
from peftkit.recipe.fields import PASSED_ON
from peftkit.recipe.schema import Recipe
from peftkit.recipe.section import LibrarySection, Section, all_sections

__all__ = ["recipe_schema"]


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe, with the arguments of the libraries that it may name."""
    schema = Recipe.model_json_schema()
    sections: dict[type[Section], str] = {Recipe: ""}
    for home, section in all_sections(Recipe):
        sections.setdefault(section, home)  # one that recurs is advised on at its first place
    for section, home in sections.items():
        definition = schema if section is Recipe else schema["$defs"][section.__name__]
        _document(definition["properties"], section, home)
        if issubclass(section, LibrarySection):
            for name, kind in sorted(section.passed_through_types().items()):
                described = f"{section.library.name}'s {name}, {PASSED_ON}"
                definition["properties"][name] = {**_type_schema(kind), "description": described}
            definition["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "peftkit recipe"}


def _document(properties: dict[str, Any], section: type[Section], home: str) -> None:
    """Give each field its meaning on one line, what is known beside it on further ones, and a default made anew."""
    for name, field in section.model_fields.items():
        advice = ADVICE.get(f"{home}.{name}" if home else name)
        beside = [f"{what}: {text}" for what, text in advice.lines()] if advice else []
        properties[name]["description"] = "\n".join([" ".join((field.description or "").split()), *beside])
        if field.default_factory in (dict, list):
            properties[name]["default"] = field.default_factory()


def _type_schema(kind: Any) -> dict[str, Any]:
    """The schema of a library's type, or of anything where JSON has no such type."""
    try:
        found: dict[str, Any] = _ordered(TypeAdapter(kind).json_schema())
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema):
        return {}
    return found


def _ordered(value: Any) -> Any:
    """The same with alternatives in one order: `typing` gives those of whichever equal type was made first."""
    if isinstance(value, list):
        return [_ordered(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {name: _ordered(item) for name, item in value.items()}
    if "anyOf" in found:
        found["anyOf"].sort(key=json.dumps)
    return found
