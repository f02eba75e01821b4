"""The classes of libraries whose arguments a recipe may use by name, as this package lists them.

`TrainingArguments` has over a hundred fields and `LoraConfig` over forty, and they change with every release. What a
recipe may say, the schema and every explanation are the same whatever is installed: names, types, defaults and
documentation are those of the newest tested version, in `assets/arguments.json`, which
`python docs/generate.py --libraries` writes. `peftkit.recipe.installed` finds what an installed version lacks.
"""

from __future__ import annotations

import ast
import functools
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "BITSANDBYTES_CONFIG",
    "LISTING",
    "LORA_CONFIG",
    "OPTIMIZERS",
    "SCHEDULERS",
    "TRAINING_ARGUMENTS",
    "Argument",
    "LibraryClass",
    "LibraryValues",
    "listed_versions",
]

LISTING = Path(__file__).resolve().parents[1] / "assets" / "arguments.json"


@dataclass(frozen=True)
class Argument:
    """What a library says of one argument of a class."""

    type: str | None
    """Its annotation, as Python; None where there is none."""

    default: Any
    """Its default; a text of Python where that is no plain value, and None where there is none."""

    help: str | None
    """Its documentation, on one line."""


@dataclass(frozen=True)
class LibraryClass:
    """A class whose arguments a recipe section passes on by name."""

    module: str
    name: str

    @property
    def package(self) -> str:
        """The library that it belongs to."""
        return self.module.partition(".")[0]

    def argument_types(self) -> dict[str, Any]:
        """Each argument's name and type; a type that only the library knows is `Any`."""
        return _types(self.name)

    def argument(self, name: str) -> Argument:
        """What the library says of an argument."""
        return Argument(**_listing()["classes"][self.name][name])


@dataclass(frozen=True)
class LibraryValues:
    """An enumeration of texts that a library takes for one argument."""

    module: str
    name: str

    def listed(self) -> tuple[str, ...]:
        """Its values, in the library's order."""
        return tuple(_listing()["values"][self.name])


TRAINING_ARGUMENTS = LibraryClass("transformers.training_args", "TrainingArguments")
LORA_CONFIG = LibraryClass("peft.tuners.lora.config", "LoraConfig")
BITSANDBYTES_CONFIG = LibraryClass("transformers.utils.quantization_config", "BitsAndBytesConfig")
OPTIMIZERS = LibraryValues("transformers.training_args", "OptimizerNames")
SCHEDULERS = LibraryValues("transformers.trainer_utils", "SchedulerType")


def listed_versions() -> dict[str, str]:
    """The version of each library that the list was made from."""
    return dict(_listing()["versions"])


@functools.cache
def _listing() -> Any:
    return json.loads(LISTING.read_text(encoding="utf-8"))


@functools.cache
def _types(name: str) -> dict[str, Any]:
    return {argument: _evaluate(said["type"]) for argument, said in _listing()["classes"][name].items()}


class _TypingNames(dict[str, Any]):
    """The names an annotation may use; any other stands for a class of the library, and is `Any` here."""

    def __missing__(self, name: str) -> Any:
        return getattr(typing, name, Any)


def _evaluate(annotation: str | None) -> Any:
    if annotation is None:
        return Any
    builtins = {kind.__name__: kind for kind in (bool, int, float, str, list, dict, tuple, set)}
    code = compile(ast.parse(annotation, mode="eval"), "<annotation>", "eval")
    try:
        return eval(code, {"__builtins__": {}}, _TypingNames(builtins))
    except (AttributeError, TypeError):  # an attribute or subscript of a class that only the library knows
        return Any
