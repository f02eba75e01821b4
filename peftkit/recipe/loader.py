"""A recipe from its file and the command line, checked whole before anything is loaded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from peftkit.errors import FieldError, Problem, RecipeError, nearest
from peftkit.recipe.document import Document, dotted, parse_document, read_source
from peftkit.recipe.document import Path as Field
from peftkit.recipe.layers import Layers, Origin, Override, absolute_paths, parse_override
from peftkit.recipe.methods import METHODS, unused_sections
from peftkit.recipe.problems import describe, found
from peftkit.recipe.references import reference_errors
from peftkit.recipe.schema import Recipe
from peftkit.redaction import holds_secret

__all__ = ["RecipeFile", "load_recipe", "parse_recipe"]

_METHODS: tuple[str, ...] = tuple(METHODS)


@dataclass(frozen=True)
class RecipeFile:
    """A checked recipe that remembers where each of its values was written."""

    recipe: Recipe
    path: Path
    output: Path
    """The run folder."""

    layers: Layers

    def where(self, field: str) -> str:
        """File and line, or option, that a dotted field was written at, or the nearest section around it."""
        origin = self.layers.origin(_path_of(field))
        return origin.where if origin else str(self.path)

    @contextlib.contextmanager
    def locating(self) -> Iterator[None]:
        """Give errors about a field, found further down, the place where the field was written."""
        try:
            yield
        except FieldError as error:
            raise RecipeError([self.problem(error)]) from error

    def problem(self, error: FieldError) -> Problem:
        """An error about a field, with the place where the field was written."""
        where = self.where(error.field)
        options = f" {where}=…" if where.startswith("--set") else ""
        return Problem(where, error.field, error.what, error.remedy_for(str(self.path), options))

    def with_format(self, found: Any) -> RecipeFile:
        """The recipe with the data format that `auto` turned out to be."""
        data = self.recipe.data.model_copy(update={"format": found})
        return replace(self, recipe=self.recipe.model_copy(update={"data": data}))

    def with_training(self, changes: dict[str, Any]) -> RecipeFile:
        """The recipe with other values of some hyperparameters."""
        training = self.recipe.training.model_copy(update=changes)
        return replace(self, recipe=self.recipe.model_copy(update={"training": training}))

    def notes(self) -> list[str]:
        """What the recipe says that cannot act in this run."""
        return [
            f"{section} is checked, and not used by method: {self.recipe.method}."
            for section in unused_sections(self.recipe.method)
            if (section,) in self.layers.origins
        ]

    def resolved_yaml(self) -> str:
        """The complete recipe, every default written out: it trains the same run again."""
        text = StringIO()
        text.writelines(f"# {note}\n" for note in self.notes())
        writer: Any = YAML(typ="safe", pure=True)
        writer.default_flow_style = False
        writer.width = 2**31 - 1  # where ruamel.yaml folds an escaped text, it adds a space to it
        writer.sort_base_mapping_type_on_output = False
        values = self.recipe.model_dump(mode="json")
        # a character such as U+0085 would be read again as an end of line, so a text with one is escaped
        writer.allow_unicode = json.dumps(values, ensure_ascii=False).isprintable()
        writer.dump(values, text)
        return text.getvalue()


def load_recipe(
    path: Path, *, method: str | None = None, overrides: Sequence[str] = (), output: Path | None = None
) -> RecipeFile:
    """Read a recipe, apply `--method` and `--set`, and check it for every method that it has values of its own for.

    Raises:
        RecipeError: everything that is wrong, together.
        InputError: the file cannot be read.
    """
    text = read_source(path, "recipe", "See `peftkit recipes list`.")
    return parse_recipe(text, path, method=method, overrides=overrides, output=output)


def parse_recipe(
    text: str, path: Path, *, method: str | None = None, overrides: Sequence[str] = (), output: Path | None = None
) -> RecipeFile:
    """The same for a text that is, or will be, in a file.

    Raises:
        RecipeError: everything that is wrong, together.
    """
    document = parse_document(text, str(path))
    problems = list(_method_problems(document, str(path)))
    changes = _parse(overrides, problems)
    own = document.values.get("methods")
    chosen = _chosen(document, changes, method)
    others: list[Any] = list(own) if isinstance(own, dict) else []
    variants = [chosen, *(name for name in _METHODS if name in others and name != chosen)]
    recipe: Recipe | None = None
    layers = Layers()
    for variant in variants:
        candidate = _layered(path, document, changes, method if variant == chosen else variant, variant)
        wrong, checked = _validate(candidate, path)
        known = set(problems)
        problems += [problem for problem in wrong if problem not in known]
        if variant == chosen:
            recipe, layers = checked, candidate
    if problems or recipe is None:
        raise RecipeError(problems)
    return RecipeFile(recipe, path, output or Path(recipe.output or f"runs/{recipe.name}"), layers)


def _path_of(field: str) -> Field:
    return tuple(int(part) if part.isdecimal() else part for part in field.split("."))


def _parse(overrides: Sequence[str], problems: list[Problem]) -> list[Override]:
    changes: list[Override] = []
    for text in overrides:
        try:
            changes.append(parse_override(text))
        except RecipeError as error:
            problems += error.problems
    return changes


def _chosen(document: Document, changes: list[Override], method: str | None) -> Any:
    """The method of this run: from the command line, `--set`, the file, or the schema's default."""
    set_to = next((change.value for change in reversed(changes) if change.path == ("method",)), None)
    return method or set_to or document.values.get("method", Recipe.model_fields["method"].default)


def _layered(path: Path, document: Document, changes: list[Override], method: str | None, variant: Any) -> Layers:
    """The file, over it the variant's own values, over them what the command line sets."""
    layers = Layers()
    folder, file = path.resolve().parent, str(path)
    layers.merge(absolute_paths(document.values, folder), document.lines, file)
    methods = document.values.get("methods")
    own = methods.get(variant) if isinstance(methods, dict) and isinstance(variant, str) else None
    if variant in _METHODS and isinstance(own, dict):
        layers.merge(absolute_paths(own, folder), document.lines, file, ("methods", variant))
    if isinstance(methods, dict):
        layers.values["methods"] = {}  # each is checked as a variant of its own
    for change in changes:
        nested: Any = change.value
        for part in reversed(change.path):
            nested = {part: nested}
        value = absolute_paths(nested, Path.cwd())
        for part in change.path:
            value = value[str(part)]
        layers.put(change.path, value, Origin(change.where, dotted(change.path)))
    if method is not None:
        layers.put(("method",), method, Origin("--method", "method"))
    return layers


def _validate(layers: Layers, path: Path) -> tuple[list[Problem], Recipe | None]:
    problems: list[Problem] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(layers.values)
    except ValidationError as error:
        problems += describe(error, layers, str(path))
    problems += _unsafe(layers, str(path))
    for missing in reference_errors(layers.values):
        where, field = layers.place(_path_of(missing.field), str(path))
        problems.append(Problem(where, field, missing.what, missing.remedy))
    return problems, recipe


def _unsafe(layers: Layers, file: str) -> Iterator[Problem]:
    """Tokens, which a run folder would hold copies of, and an output that is no path or that leaves the folder."""
    for path, text in _texts(layers.values, ()):
        if holds_secret(text):
            where, field = layers.place(path, file)
            remedy = "Remove it, and make it invalid where it is from; peftkit reads tokens from HF_TOKEN alone."
            yield Problem(where, field, "holds a token or a password, which would be written into the run.", remedy)
    output = layers.values.get("output")
    if isinstance(output, str) and ".." in PurePath(output).parts:
        where, field = layers.place(("output",), file)
        yield Problem(where, field, "leaves the working directory.", "Name that place with --output.")
    if isinstance(output, str) and "\0" in output:
        where, field = layers.place(("output",), file)
        yield Problem(where, field, "holds the character U+0000, which no path can.", "Remove it.")


def _texts(value: Any, path: Field) -> Iterator[tuple[Field, str]]:
    """Every text in nested values, keys included, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key, (*path, key))
            yield from _texts(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*path, index))


def _method_problems(document: Document, file: str) -> Iterator[Problem]:
    """What is wrong with `methods` itself; the values in it are checked with the recipe that they change."""
    methods = document.values.get("methods")
    for name, own in methods.items() if isinstance(methods, dict) else ():
        where = f"{file}:{document.lines['methods', name]}"
        if name not in _METHODS:
            guess = nearest(name, _METHODS)
            remedy = f"Did you mean {guess}?" if guess else f"There are: {', '.join(_METHODS)}."
            yield Problem(where, f"methods.{name}", f"there is no method {name}.", remedy)
        elif not isinstance(own, dict):
            what = f"is {found(own)}, but must be a mapping of fields."
            yield Problem(where, f"methods.{name}", what, "Change the value.")
        else:
            for key in ("method", "methods"):
                if key in own:
                    line = document.lines["methods", name, key]
                    what = "cannot differ in a method's own values."
                    yield Problem(f"{file}:{line}", f"methods.{name}.{key}", what, "Remove it.")
