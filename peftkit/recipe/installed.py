"""What the installed libraries accept, read from their source without importing them.

`TrainingArguments` has over a hundred fields and `LoraConfig` over forty, and they change with every release. A recipe
may use each of them by name, so their names and types are read from the installed files with `ast`: always true of the
version at hand, and 50 milliseconds instead of the seconds that importing torch takes.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LibraryClass", "enum_values"]


@dataclass(frozen=True)
class LibraryClass:
    """A class of an installed library whose arguments a recipe section passes on by name."""

    module: str
    name: str

    def argument_types(self) -> dict[str, Any]:
        """Each argument's name and type; a type that only the library knows is `Any`."""
        return _argument_types(self.module, self.name)


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
