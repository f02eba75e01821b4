"""The classes of libraries whose arguments a recipe may use by name: as this package lists them, and as installed.

`TrainingArguments` has over a hundred fields and `LoraConfig` over forty, and they change with every release. What a
recipe may say, the schema and every explanation are the same whatever is installed: names, types, defaults and
documentation are those of the newest tested version, in `assets/arguments.json`, which
`python docs/generate.py --libraries` writes. `check_installed` finds what an installed version lacks, by reading its
source: that takes 50 milliseconds instead of the seconds that importing torch takes.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import typing
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.errors import FieldError
from peftkit.recipe.methods import unused_sections
from peftkit.recipe.names import LORA_OWNED, QUANTIZATION_OWNED, TRAINING_REFUSED
from peftkit.recipe.quantizers import check_available

if TYPE_CHECKING:
    from peftkit.recipe.schema import Recipe

__all__ = [
    "BITSANDBYTES_CONFIG", "LIBRARIES", "LISTING", "LORA_CONFIG", "OPTIMIZERS", "SCHEDULERS", "TRAINING_ARGUMENTS",
    "Argument", "LibraryClass", "check_installed", "installed_arguments", "installed_values", "listed_versions",
]  # fmt: skip

LISTING = Path(__file__).resolve().parents[1] / "assets" / "arguments.json"


@dataclass(frozen=True)
class Argument:
    """What a library says of one argument of a class."""

    type: str | None  # its annotation, as Python; None where there is none
    default: Any  # its default; a text of Python where that is no plain value, and None where there is none
    help: str | None  # its documentation, on one line


@dataclass(frozen=True)
class LibraryClass:
    """A class whose arguments a recipe section passes on by name, or an enumeration of the values of one argument."""

    module: str
    name: str
    owned: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Names that the section refuses, with what to write instead."""

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

    def values(self) -> tuple[str, ...]:
        """The values of an enumeration, in the library's order."""
        return tuple(_listing()["values"][self.name])


TRAINING_ARGUMENTS = LibraryClass("transformers.training_args", "TrainingArguments", TRAINING_REFUSED)
LORA_CONFIG = LibraryClass("peft.tuners.lora.config", "LoraConfig", LORA_OWNED)
BITSANDBYTES_CONFIG = LibraryClass("transformers.utils.quantization_config", "BitsAndBytesConfig", QUANTIZATION_OWNED)
OPTIMIZERS = LibraryClass("transformers.training_args", "OptimizerNames")
SCHEDULERS = LibraryClass("transformers.trainer_utils", "SchedulerType")
LIBRARIES: Mapping[str, LibraryClass] = {
    "training": TRAINING_ARGUMENTS,
    "lora": LORA_CONFIG,
    "quantization": BITSANDBYTES_CONFIG,
}
"""The sections that pass arguments on, and to which class."""


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


def check_installed(recipe: Recipe) -> None:
    """See that the installed libraries have every argument that a recipe passes on to them, and carry it out.

    Raises:
        FieldError: one is missing or without effect; names the version that has it.
    """
    from peftkit.compatibility import peft_loses_biases, spelled  # which need packaging; `explain` does without

    for home, library in LIBRARIES.items():
        if home not in unused_sections(recipe.method):
            for name in getattr(recipe, home).model_extra or {}:
                known = installed_arguments(library)
                here = next(iter(spelled({name: None}, known)))
                _check(f"{home}.{name}", here, known, "argument", library.package)
    if recipe.trains_adapter and recipe.lora.bias == "lora_only" and peft_loses_biases():
        raise FieldError(
            "lora.bias",
            f"peft {version('peft')}, which is installed, does not save the biases that lora_only trains.",
            remedy="pip install 'peft>=0.21', or set lora.bias to all or none.",
        )
    if recipe.base_quantization:
        check_available(recipe.base_quantization.backend)
    training, package = recipe.training, TRAINING_ARGUMENTS.package
    _check("training.optim", training.optim, installed_values(OPTIMIZERS), "optimizer", package)
    schedules = installed_values(SCHEDULERS)
    _check("training.lr_scheduler_type", training.lr_scheduler_type, schedules, "schedule", package)


def _check(field: str, name: str, known: Container[str], kind: str, package: str) -> None:
    if name not in known:
        listed = listed_versions()[package]
        raise FieldError(
            field,
            f"{package} {version(package)}, which is installed, has no {kind} {name}.",
            remedy=f"{package} {listed} has it: pip install '{package}=={listed}', or remove the field.",
        )


@functools.cache
def installed_arguments(library: LibraryClass) -> dict[str, Argument]:
    """What an installed class says of its arguments: in its docstring or, where not there, next to the field."""
    node = _class_of(library)
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    written = {each.target.id: _field(each) for each in fields if isinstance(each.target, ast.Name)}
    entries = _ENTRY.findall(f"{ast.get_docstring(node) or ''}\n")
    documented = {name: " ".join(entry.split()) for name, entry in entries}
    return {
        name: Argument(kind, default, documented.get(name) or inline)
        for name, (kind, default, inline) in (written or _of_constructor(node.body)).items()
    }


_Written = tuple[str | None, Any, str | None]
"""Type, default, and the help that stands next to an argument."""

_ENTRY = re.compile(r"^ {4}(\w+) ?\(.*\).*:[ \t]*\n((?:(?: {8}.*)?\n)+)", re.MULTILINE)
"""An argument in a class's docstring: its name and type on a line, and its text further in below."""


def _of_constructor(body: list[ast.stmt]) -> dict[str, _Written]:
    constructor = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    arguments, defaults = constructor.args.args[1:], constructor.args.defaults
    values = [None] * (len(arguments) - len(defaults)) + [_plain(default) for default in defaults]
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
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value) if value else None


@functools.cache
def installed_values(library: LibraryClass) -> tuple[str, ...]:
    """The values of an installed enumeration, in the order of the source."""
    assignments = (node.value for node in _class_of(library).body if isinstance(node, ast.Assign))
    return tuple(str(value.value) for value in assignments if isinstance(value, ast.Constant))


def _class_of(library: LibraryClass) -> ast.ClassDef:
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
