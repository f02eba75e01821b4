"""What the installed libraries accept, read from their source without importing them.

`TrainingArguments` has over a hundred fields and `LoraConfig` over forty, and they change with every release. A recipe
may use each of them by name, so their names and types are read from the installed files with `ast`: always true of the
version at hand, and 50 milliseconds instead of the seconds that importing torch takes.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BITSANDBYTES_CONFIG", "LORA_CONFIG", "TRAINING_ARGUMENTS", "Argument", "LibraryClass", "enum_values"]


@dataclass(frozen=True)
class Argument:
    """What a library says of one argument of a class."""

    help: str | None
    """Its documentation, on one line."""

    default: Any
    """Its default; a text of Python where that is no plain value, and None where there is none."""


@dataclass(frozen=True)
class LibraryClass:
    """A class of an installed library whose arguments a recipe section passes on by name."""

    module: str
    name: str

    def argument_types(self) -> dict[str, Any]:
        """Each argument's name and type; a type that only the library knows is `Any`."""
        return _argument_types(self.module, self.name)

    def argument(self, name: str) -> Argument:
        """What the library says of an argument: in the class's docstring or, where not there, beside the field."""
        default, beside = _written(self.module, self.name).get(name, (None, None))
        return Argument(_documented(self.module, self.name).get(name) or beside, default)


TRAINING_ARGUMENTS = LibraryClass("transformers.training_args", "TrainingArguments")
LORA_CONFIG = LibraryClass("peft.tuners.lora.config", "LoraConfig")
BITSANDBYTES_CONFIG = LibraryClass("transformers.utils.quantization_config", "BitsAndBytesConfig")


@functools.cache
def _argument_types(module: str, name: str) -> dict[str, Any]:
    body = _class_body(module, name)
    fields = {
        node.target.id: node.annotation
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    if fields:
        return {field: _evaluate(annotation) for field, annotation in fields.items()}
    constructor = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return {argument.arg: _evaluate(argument.annotation) for argument in constructor.args.args[1:]}


@functools.cache
def _written(module: str, name: str) -> dict[str, tuple[Any, str | None]]:
    """Each argument's default, and the help that a field of a dataclass has in its metadata."""
    body = _class_body(module, name)
    found: dict[str, tuple[Any, str | None]] = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = _field(node.value)
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__" and not found:
            arguments = node.args.args
            defaults = node.args.defaults
            named = zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)
            found |= {argument.arg: (_plain(default), None) for argument, default in named}
    return found


def _field(value: ast.expr | None) -> tuple[Any, str | None]:
    """Default and help of `x: T = value`, where the value may be a call of `dataclasses.field`."""
    if not isinstance(value, ast.Call):
        return _plain(value), None
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    metadata = _plain(given.get("metadata"))
    text = metadata.get("help") if isinstance(metadata, dict) else None
    return _plain(given.get("default")), " ".join(text.split()) if isinstance(text, str) else None


def _plain(value: ast.expr | None) -> Any:
    if value is None:
        return None
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)


_ENTRY = re.compile(r"^ {4}(\w+) ?\(.*\).*:[ \t]*\n((?:(?: {8}.*)?\n)+)", re.MULTILINE)
"""An argument in a class's docstring: its name and type on a line, and its text further in below."""


@functools.cache
def _documented(module: str, name: str) -> dict[str, str]:
    nodes = _source_tree(module).body
    found = next(node for node in nodes if isinstance(node, ast.ClassDef) and node.name == name)
    text = f"{ast.get_docstring(found) or ''}\n"
    return {argument: " ".join(entry.split()) for argument, entry in _ENTRY.findall(text)}


@functools.cache
def enum_values(module: str, name: str) -> tuple[str, ...]:
    """The values of a string enumeration, in the order of the source."""
    assignments = (node.value for node in _class_body(module, name) if isinstance(node, ast.Assign))
    return tuple(str(value.value) for value in assignments if isinstance(value, ast.Constant))


@functools.cache
def _source_tree(module: str) -> ast.Module:
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)  # for a top-level package this finds the file and imports nothing
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed")
    source = Path(spec.origin).parent.joinpath(*inner).with_suffix(".py")
    return ast.parse(source.read_text(encoding="utf-8"))


def _class_body(module: str, name: str) -> list[ast.stmt]:
    nodes = _source_tree(module).body
    return next(node.body for node in nodes if isinstance(node, ast.ClassDef) and node.name == name)


class _TypingNames(dict[str, Any]):
    """The names an annotation may use; any other stands for a class of the library, and is `Any` here."""

    def __missing__(self, name: str) -> Any:
        return getattr(typing, name, Any)


def _evaluate(annotation: ast.expr | None) -> Any:
    if annotation is None:
        return Any
    builtins = {kind.__name__: kind for kind in (bool, int, float, str, list, dict, tuple, set)}
    code = compile(ast.Expression(annotation), "<annotation>", "eval")
    try:
        return eval(code, {"__builtins__": {}}, _TypingNames(builtins))
    except (AttributeError, TypeError):  # an attribute or subscript of a class that only the library knows
        return Any
