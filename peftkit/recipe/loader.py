"""A recipe from its file and the command line, checked whole before anything is loaded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from peftkit.errors import FieldError, Problem, RecipeError, nearest
from peftkit.recipe.document import Document, dotted, parse_document, parse_override, read_source
from peftkit.recipe.document import Path as Field
from peftkit.recipe.methods import METHODS, unused_sections
from peftkit.recipe.references import absolute_paths, reference_errors
from peftkit.recipe.schema import Recipe
from peftkit.recipe.section import describe, found
from peftkit.redaction import holds_secret

__all__ = ["Layers", "RecipeFile", "load_recipe", "parse_recipe"]


@dataclass(frozen=True)
class Origin:
    """Where a value was written."""

    where: str  # file and line, or the option
    field: str  # the dotted path it was written under, which for a method's own values begins with `methods`


@dataclass
class Layers:
    """Merged values, and the origin of each."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Field, Origin] = field(default_factory=dict)

    def put(self, path: Field, value: Any, origin: Origin) -> None:
        """Set one value, whatever was there, making the mappings that lead to it."""
        place = self.values
        for depth, part in enumerate(path[:-1], start=1):
            inner = place.get(str(part))
            if not isinstance(inner, dict):
                inner = place[str(part)] = {}
                self._forget(path[:depth])
            place = inner
            self.origins.setdefault(path[:depth], Origin(origin.where, dotted(path[:depth])))
        place[str(path[-1])] = value
        self._forget(path)
        self.origins[path] = origin

    def merge(self, values: Mapping[str, Any], lines: Mapping[Field, int], file: str, prefix: Field = ()) -> None:
        """Lay a file's values over what is there, mapping by mapping; `prefix` is where they are in the file."""
        for path, value in _below(values, ()):
            written = (*prefix, *path)
            origin = Origin(f"{file}:{lines[written]}", dotted(written))
            in_list = any(isinstance(part, int) for part in path)
            if in_list or (isinstance(value, dict) and isinstance(self._value(path), dict)):
                self.origins[path] = origin
            else:
                self.put(path, {} if isinstance(value, dict) else value, origin)

    def _value(self, path: Field) -> Any:
        found: Any = self.values
        for part in path:
            found = found.get(str(part)) if isinstance(found, dict) else None
        return found

    def _forget(self, path: Field) -> None:
        if path in self.origins:  # otherwise nothing below is known either
            self.origins = {known: at for known, at in self.origins.items() if known[: len(path)] != path}

    def place(self, path: Field, file: str) -> tuple[str, str]:
        """Where to report `path`, at the nearest section that was written, and the field as it was written there.

        A field that a method's own values set begins with `methods`.
        """
        origin = self.origin(path)
        if origin is None:
            return f"{file}:1", dotted(path)
        depth = max(end for end in range(len(path) + 1) if path[:end] in self.origins)
        return origin.where, dotted((origin.field, *path[depth:]))

    def origin(self, path: Field) -> Origin | None:
        """Where the value at `path` was written, or the nearest section around it that was."""
        around = (path[:end] for end in range(len(path), 0, -1))
        return next((self.origins[each] for each in around if each in self.origins), None)


def _below(value: Any, path: Field) -> Iterator[tuple[Field, Any]]:
    """The path and value of everything in a nested value at `path`, each section and list before what is in it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, deeper in inner:
        yield (*path, key), deeper
        yield from _below(deeper, (*path, key))


@dataclass(frozen=True)
class RecipeFile:
    """A checked recipe that remembers where each of its values was written."""

    recipe: Recipe
    path: Path
    output: Path  # the run folder
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

    def with_data(self, changes: dict[str, Any]) -> RecipeFile:
        """The recipe with what is known of the data once it has been read."""
        return self._with("data", changes)

    def with_training(self, changes: dict[str, Any]) -> RecipeFile:
        """The recipe with other values of some hyperparameters."""
        return self._with("training", changes)

    def _with(self, section: str, changes: dict[str, Any]) -> RecipeFile:
        changed = getattr(self.recipe, section).model_copy(update=changes)
        return replace(self, recipe=self.recipe.model_copy(update={section: changed}))

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
    changes: list[tuple[Field, Any]] = []
    for override in overrides:
        try:
            changes.append(parse_override(override))
        except RecipeError as error:
            problems += error.problems
    set_to = next((value for at, value in reversed(changes) if at == ("method",)), None)
    chosen = method or set_to or document.values.get("method", Recipe.model_fields["method"].default)
    own = document.values.get("methods")
    others: list[Any] = list(own) if isinstance(own, dict) else []
    recipe: Recipe | None = None
    layers = Layers()
    for variant in [chosen, *(name for name in METHODS if name in others and name != chosen)]:
        candidate = _layered(path, document, changes, method if variant == chosen else variant, variant)
        wrong, checked = _validate(candidate, str(path))
        known = set(problems)
        problems += [problem for problem in wrong if problem not in known]
        if variant == chosen:
            recipe, layers = checked, candidate
    if problems or recipe is None:
        raise RecipeError(problems)
    return RecipeFile(recipe, path, output or Path(recipe.output or f"runs/{recipe.name}"), layers)


def _path_of(field: str) -> Field:
    return tuple(int(part) if part.isdecimal() else part for part in field.split("."))


def _layered(
    path: Path, document: Document, changes: Sequence[tuple[Field, Any]], method: str | None, variant: Any
) -> Layers:
    """The file, over it the variant's own values, over them what the command line sets."""
    layers = Layers()
    folder, file = path.resolve().parent, str(path)
    layers.merge(absolute_paths(document.values, folder), document.lines, file)
    methods = document.values.get("methods")
    if isinstance(methods, dict):
        if isinstance(variant, str) and variant in METHODS and isinstance(methods.get(variant), dict):
            layers.merge(absolute_paths(methods[variant], folder), document.lines, file, ("methods", variant))
        layers.values["methods"] = {}  # each is checked as a variant of its own
    for at, value in changes:
        nested: Any = value
        for part in reversed(at):
            nested = {part: nested}
        nested = absolute_paths(nested, Path.cwd())
        for part in at:
            nested = nested[part]
        layers.put(at, nested, Origin(f"--set {dotted(at)}", dotted(at)))
    if method is not None:
        layers.put(("method",), method, Origin("--method", "method"))
    return layers


def _validate(layers: Layers, file: str) -> tuple[list[Problem], Recipe | None]:
    problems: list[Problem] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(layers.values)
    except ValidationError as error:
        problems += describe(error, layers, file, Recipe)
    for path, what, remedy in _unsafe(layers.values):
        problems.append(Problem(*layers.place(path, file), what, remedy))
    for missing in reference_errors(layers.values):
        problems.append(Problem(*layers.place(_path_of(missing.field), file), missing.what, missing.remedy))
    return problems, recipe


def _unsafe(values: Mapping[str, Any]) -> Iterator[tuple[Field, str, str]]:
    """Tokens, which a run folder would hold copies of, and an output that is no path or that leaves the folder."""
    for path, value in _below(values, ()):
        if any(isinstance(text, str) and holds_secret(text) for text in (path[-1], value)):
            remedy = "Remove it, and make it invalid where it is from; peftkit reads tokens from HF_TOKEN alone."
            yield path, "holds a token or a password, which would be written into the run.", remedy
    output = values.get("output")
    if isinstance(output, str) and ".." in PurePath(output).parts:
        yield ("output",), "leaves the working directory.", "Name that place with --output."
    if isinstance(output, str) and "\0" in output:
        yield ("output",), "holds the character U+0000, which no path can.", "Remove it."


def _method_problems(document: Document, file: str) -> Iterator[Problem]:
    """What is wrong with `methods` itself; the values in it are checked with the recipe that they change."""
    methods = document.values.get("methods")
    for name, own in methods.items() if isinstance(methods, dict) else ():
        where = f"{file}:{document.lines['methods', name]}"
        if name not in METHODS:
            guess = nearest(name, METHODS)
            remedy = f"Did you mean {guess}?" if guess else f"There are: {', '.join(METHODS)}."
            yield Problem(where, f"methods.{name}", f"there is no method {name}.", remedy)
        elif not isinstance(own, dict):
            what = f"is {found(own)}, but must be a mapping of fields."
            yield Problem(where, f"methods.{name}", what, "Change the value.")
        else:
            for key in (key for key in ("method", "methods") if key in own):
                line, what = document.lines["methods", name, key], "cannot differ in a method's own values."
                yield Problem(f"{file}:{line}", f"methods.{name}.{key}", what, "Remove it.")
