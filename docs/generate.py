"""Writes `commands.md`, `recipe.md` and `hardware.md`, and the recipe's JSON Schema, from the code.

`python docs/generate.py --libraries` first lists anew what the installed libraries take from a recipe: for a new
version in `constraints.txt`, with that version installed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from pydantic import PydanticSchemaGenerationError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from peftkit.cli.app import COMMANDS, app
from peftkit.console import size
from peftkit.metrics import METRICS
from peftkit.planning.decisions import decide
from peftkit.planning.hardware import DEVICES
from peftkit.recipe.fields import PASSED_ON
from peftkit.recipe.libraries import (
    LIBRARIES,
    LISTING,
    OPTIMIZERS,
    SCHEDULERS,
    installed_arguments,
    installed_values,
    listed_versions,
)
from peftkit.recipe.methods import ADVICE
from peftkit.recipe.schema import Recipe
from peftkit.recipe.section import LibrarySection, Section, all_sections

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER.parent / "benchmarks" / "results"

_HARDWARE = """\
# Hardware

The tables are made from the code by `python docs/generate.py`.

A recipe says what is learnt; the machine decides how it is computed. `peftkit doctor` tries what training needs and
prints the decisions for the machine that it runs on. Training takes the very same. What a recipe sets itself, as
`precision: fp32` or `training.tf32: true`, always wins, and is refused where the machine cannot do it. Nothing that
would change a result is taken without being asked for: where a step does not fit into memory, an 8-bit or paged
optimizer and activation checkpointing are suggested with their figures.

## What the doctor says

- **can it**: each thing that training needs, done once on the embedded base. `NO` is something that peftkit needs, and
  the exit status is 1. `no` is something that can be done without, as the hub, with what to do about it.
- **decision**: those of the table below, for this machine.
- **library**: each version here with the lowest and newest that were tested. `tested` is one of these two, `supported`
  lies between them, `newer` is allowed and untested, `unfit` is not what peftkit requires, with what to install
  ([installing.md](installing.md)).

`peftkit doctor --json` has the same for programs. It shows no token: it says only whether one is set.

## Decisions

For `method: lora` and a recipe that sets nothing else. With `method: full` the base's weights are float32.

Attention is chosen for documents that share rows (`data.packing`), in this order: `varlen`, the FlashAttention over
variable lengths that torch ships; `flash_attention_2`, where the package flash-attn is installed; `flex_attention`;
`sdpa`. The table is for a model that can use `varlen` and `flex_attention`, as Llama. GPT-2 can use `varlen`, with its
dropout too, but not `flex_attention`. `varlen` needs heads of at most 256 values, a multiple of 8, and a model that
Transformers marks as fit for FlashAttention. Before training, each choice is tried on the model: two documents in one
row must have the logits and gradients that they have alone. One that fails is reported, and the next is tried. Samples,
generated text and proofs always use `sdpa`."""


_METRICS = """\
Every figure by its name in `manifest.json`, `comparison.json`, `--json` and `expect`, and by its label in tables, cards
and reports. `peftkit explain METRIC` says the same."""


def installed_listing() -> dict[str, Any]:
    """What the installed libraries say of all that a recipe may pass on: the content of `assets/arguments.json`."""
    return {
        "versions": {package: version(package) for package in sorted({each.package for each in LIBRARIES.values()})},
        "classes": {
            library.name: {name: vars(said) for name, said in installed_arguments(library).items()}
            for library in LIBRARIES.values()
        },
        "values": {values.name: list(installed_values(values)) for values in (OPTIMIZERS, SCHEDULERS)},
    }


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
    """Give each field its meaning on one line, its advice on further ones, and a default of its own."""
    for name, field in section.model_fields.items():
        advice = ADVICE.get(f"{home}.{name}" if home else name)
        lines = [f"{what}: {text}" for what, text in advice.lines()] if advice else []
        properties[name]["description"] = "\n".join([" ".join((field.description or "").split()), *lines])
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


def commands_page() -> str:
    """Every command with its help, as the command line prints it."""
    parts = ["# Commands", "Made from the code by `python docs/generate.py`."]
    context = click.Context(app, info_name="peftkit", max_content_width=100, terminal_width=100)
    for name in COMMANDS:
        command = app.get_command(context, name)
        assert command is not None
        parts += _command_parts(command, click.Context(command, info_name=name, parent=context), 2)
    return "\n\n".join(parts) + "\n"


def _command_parts(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    yield f"{'#' * level} {context.command_path}"
    yield f"```\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _command_parts(inner, click.Context(inner, info_name=name, parent=context), level + 1)


def recipe_page() -> str:
    """Every documented field of a recipe: its type, its default and its meaning."""
    schema = recipe_schema()
    versions = " and ".join(f"{library} {version}" for library, version in listed_versions().items())
    parts = [
        "# Recipe fields",
        "Made from the code by `python docs/generate.py`. The sections `training`, `lora` and `quantization` also take "
        "every other argument of `TrainingArguments`, `LoraConfig` and `BitsAndBytesConfig` by its name, as "
        f"{versions} have them.",
        "Under a field stand the values that are usual, with who used them, and what other ones do. `new` is a base "
        "made from `base.init`. `peftkit explain FIELD` says the same in the terminal, and of a library's argument "
        "what the library says; with `--recipe my.yaml` also what a recipe sets, and whether that is usual.",
        *_section_parts("recipe", schema),
    ]
    for name in dict.fromkeys(section.__name__ for _, section in all_sections(Recipe)):
        parts += _section_parts(_title(name), schema["$defs"][name])
    parts += ["## metrics", _METRICS, "\n".join(_metric_lines())]
    return "\n\n".join(parts) + "\n"


def _metric_lines() -> Iterator[str]:
    yield "| metric | label | unit | better | what it is |\n|---|---|---|---|---|"
    for metric in METRICS.values():
        yield f"| `{metric.name}` | {metric.label} | {metric.unit} | {metric.better or ''} | {metric.meaning} |"


def _title(name: str) -> str:
    """A section's class in words, as `new token`."""
    return re.sub(r"\B([A-Z])", r" \1", name).lower()


def _section_parts(title: str, section: dict[str, Any]) -> Iterator[str]:
    yield f"## {title}"
    yield section["description"]
    documented = {
        name: field for name, field in section["properties"].items() if not field["description"].endswith(PASSED_ON)
    }
    for name, field in documented.items():
        required = ", required" if name in section.get("required", []) else ""
        default = (
            f", default `{json.dumps(field['default'])}`" if "default" in field and _is_plain(field["default"]) else ""
        )
        meaning, *beside = field["description"].splitlines()
        yield "\n".join(
            [f"- **`{name}`** ({_type(field)}{required}{default}): {meaning}", *(f"  - {line}" for line in beside)]
        )


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        title = _title(field["$ref"].rpartition("/")[2])
        return f"[{title}](#{title.replace(' ', '-')})"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    names = {
        "string": "text",
        "integer": "whole number",
        "boolean": "true or false",
        "array": "list",
        "object": "mapping",
    }
    kind = str(field.get("type", "anything"))
    return names.get(kind, kind)


def hardware_page() -> str:
    """What is decided on each named machine, and why."""
    decisions = {name: decide(hardware) for name, hardware in DEVICES.items()}
    columns = [decision.name for decision in decisions["cpu"]]
    names = ["device", "memory", *columns]
    rows = [
        [f"`{name}`", size(DEVICES[name].memory_bytes), *(decision.text for decision in made)]
        for name, made in decisions.items()
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows))
    parts = [_HARDWARE, table, "## Why"]
    for index, column in enumerate(columns):
        reasons: dict[tuple[str, str], list[str]] = {}
        for name, made in decisions.items():
            reasons.setdefault((made[index].text, made[index].reason), []).append(name)
        lines = (f"- {text} ({_devices(on)}): {reason}." for (text, reason), on in reasons.items())
        parts.append(f"**{column}**\n\n" + "\n".join(lines))
    parts += ["## Measured", *_measured()]
    return "\n\n".join(parts) + "\n"


def _measured() -> Iterator[str]:
    """What the GPU benchmark has found, for each card and day that it has results of."""
    for path in sorted(RESULTS.glob("*/gpu.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        machine = found["machine"]
        title = f"{machine['name']}, {machine['date']}, torch {machine['versions']['torch']}"
        lines = [f"{title} ([all figures](../benchmarks/results/{path.parent.name}/gpu.md)):\n"]
        for goal in found["goals"]:
            result = f"{goal['measured']}, {goal['status']}" if goal["measured"] else goal["status"]
            lines.append(f"- {goal['goal']}: {result}.")
        yield "\n".join(lines)


def _devices(names: list[str]) -> str:
    return "everywhere" if len(names) == len(DEVICES) else ", ".join(f"`{name}`" for name in names)


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--libraries", action="store_true", help="list anew what the installed libraries take")
    if parser.parse_args().libraries:
        LISTING.write_text(_as_json(installed_listing()), encoding="utf-8")
    LISTING.with_name("recipe.schema.json").write_text(_as_json(recipe_schema()), encoding="utf-8")
    (FOLDER / "commands.md").write_text(commands_page(), encoding="utf-8")
    (FOLDER / "hardware.md").write_text(hardware_page(), encoding="utf-8")
    (FOLDER / "recipe.md").write_text(recipe_page(), encoding="utf-8")
