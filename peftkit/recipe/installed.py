"""What the installed libraries accept, read from their source without importing them.

That takes 50 milliseconds instead of the seconds that importing torch takes.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Container
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peftkit.compatibility import peft_loses_biases, spelled
from peftkit.errors import FieldError
from peftkit.recipe.libraries import (
    BITSANDBYTES_CONFIG,
    LORA_CONFIG,
    OPTIMIZERS,
    SCHEDULERS,
    TRAINING_ARGUMENTS,
    Argument,
    LibraryClass,
    LibraryValues,
    listed_versions,
)
from peftkit.recipe.methods import unused_sections
from peftkit.recipe.quantizers import check_available
from peftkit.recipe.schema import Recipe
from peftkit.recipe.section import LibrarySection

__all__ = ["check_installed", "installed_arguments", "installed_listing", "installed_values"]


def check_installed(recipe: Recipe) -> None:
    """See that the installed libraries have every argument that a recipe passes on to them, and carry it out.

    Raises:
        FieldError: one is missing or without effect; names the version that has it.
    """
    for home in type(recipe).model_fields:
        section = getattr(recipe, home)
        if not isinstance(section, LibrarySection) or home in unused_sections(recipe.method):
            continue
        for name in section.model_extra or {}:
            known = installed_arguments(section.library)
            _check(
                f"{home}.{name}", next(iter(spelled({name: None}, known))), known, "argument", section.library.package
            )
    if recipe.trains_adapter and recipe.lora.bias == "lora_only" and peft_loses_biases():
        raise FieldError(
            "lora.bias",
            f"peft {version('peft')}, which is installed, does not save the biases that lora_only trains.",
            remedy="pip install 'peft>=0.21', or set lora.bias to all or none.",
        )
    if recipe.base_quantization:
        check_available(recipe.base_quantization.backend)
    package = TRAINING_ARGUMENTS.package
    _check("training.optim", recipe.training.optim, installed_values(OPTIMIZERS), "optimizer", package)
    schedule = recipe.training.lr_scheduler_type
    _check("training.lr_scheduler_type", schedule, installed_values(SCHEDULERS), "schedule", package)


def _check(field: str, name: str, known: Container[str], kind: str, package: str) -> None:
    if name not in known:
        listed = listed_versions()[package]
        raise FieldError(
            field,
            f"{package} {version(package)}, which is installed, has no {kind} {name}.",
            remedy=f"{package} {listed} has it: pip install '{package}=={listed}', or remove the field.",
        )


def installed_listing() -> dict[str, Any]:
    """What the installed libraries say of all that a recipe may pass on: the content of `assets/arguments.json`."""
    classes = (TRAINING_ARGUMENTS, LORA_CONFIG, BITSANDBYTES_CONFIG)
    return {
        "versions": {package: version(package) for package in sorted({library.package for library in classes})},
        "classes": {
            library.name: {name: vars(said) for name, said in installed_arguments(library).items()}
            for library in classes
        },
        "values": {values.name: list(installed_values(values)) for values in (OPTIMIZERS, SCHEDULERS)},
    }


@functools.cache
def installed_arguments(library: LibraryClass) -> dict[str, Argument]:
    """What an installed class says of its arguments: in its docstring or, where not there, beside the field."""
    body = _class_of(library).body
    fields = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    written = {field.target.id: _field(field) for field in fields if isinstance(field.target, ast.Name)}
    documented = _documented(library)
    return {
        name: Argument(kind, default, documented.get(name) or beside)
        for name, (kind, default, beside) in (written or _of_constructor(body)).items()
    }


_Written = tuple[str | None, Any, str | None]
"""Type, default, and the help that stands beside an argument."""


def _of_constructor(body: list[ast.stmt]) -> dict[str, _Written]:
    constructor = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    arguments, defaults = constructor.args.args[1:], constructor.args.defaults
    without = len(arguments) - len(defaults)
    values = [None] * without + [_plain(default) for default in defaults]
    return {
        argument.arg: (ast.unparse(argument.annotation) if argument.annotation else None, value, None)
        for argument, value in zip(arguments, values, strict=True)
    }


def _field(node: ast.AnnAssign) -> _Written:
    """A dataclass's `x: T = value`, where the value may be a call of `dataclasses.field`."""
    kind = ast.unparse(node.annotation)
    if not isinstance(node.value, ast.Call):
        return kind, _plain(node.value), None
    given = {keyword.arg: keyword.value for keyword in node.value.keywords}
    metadata = _plain(given.get("metadata"))
    text = metadata.get("help") if isinstance(metadata, dict) else None
    return kind, _plain(given.get("default")), " ".join(text.split()) if isinstance(text, str) else None


def _plain(value: ast.expr | None) -> Any:
    if value is None:
        return None
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)


_ENTRY = re.compile(r"^ {4}(\w+) ?\(.*\).*:[ \t]*\n((?:(?: {8}.*)?\n)+)", re.MULTILINE)
"""An argument in a class's docstring: its name and type on a line, and its text further in below."""


def _documented(library: LibraryClass) -> dict[str, str]:
    text = f"{ast.get_docstring(_class_of(library)) or ''}\n"
    return {argument: " ".join(entry.split()) for argument, entry in _ENTRY.findall(text)}


@functools.cache
def installed_values(values: LibraryValues) -> tuple[str, ...]:
    """The values of an installed enumeration, in the order of the source."""
    assignments = (node.value for node in _class_of(values).body if isinstance(node, ast.Assign))
    return tuple(str(value.value) for value in assignments if isinstance(value, ast.Constant))


def _class_of(library: LibraryClass | LibraryValues) -> ast.ClassDef:
    nodes = _source_tree(library.module).body
    return next(node for node in nodes if isinstance(node, ast.ClassDef) and node.name == library.name)


@functools.cache
def _source_tree(module: str) -> ast.Module:
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)  # for a top-level package this finds the file and imports nothing
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed")
    source = Path(spec.origin).parent.joinpath(*inner).with_suffix(".py")
    return ast.parse(source.read_text(encoding="utf-8"))
