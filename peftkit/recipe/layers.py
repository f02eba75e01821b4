"""A recipe's values from several places, one over the other, each remembering where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from peftkit.errors import Problem, RecipeError, printable
from peftkit.recipe.document import DEEPEST, Path, dotted, parse_value
from peftkit.recipe.references import BUILTIN_PREFIX, is_folder

__all__ = ["Layers", "Origin", "Override", "absolute_paths", "parse_override"]

_DATA_PATHS: tuple[Path, ...] = (("data", "train", "path"), ("data", "validation", "path"))
_MODEL_PATHS: tuple[Path, ...] = (("base", "model"), ("base", "init", "tokenizer"))


@dataclass(frozen=True)
class Origin:
    """Where a value was written."""

    where: str
    """File and line, or the option."""

    field: str
    """The dotted path it was written under, which for a method's own values begins with `methods`."""


@dataclass
class Layers:
    """Merged values, and the origin of each."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path, Origin] = field(default_factory=dict)

    def put(self, path: Path, value: Any, origin: Origin) -> None:
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

    def merge(self, values: Mapping[str, Any], lines: Mapping[Path, int], file: str, prefix: Path = ()) -> None:
        """Lay a file's values over what is there, mapping by mapping; `prefix` is where they are in the file."""
        for path, value in _below(values, ()):
            written = (*prefix, *path)
            origin = Origin(f"{file}:{lines[written]}", dotted(written))
            in_list = any(isinstance(part, int) for part in path)
            if in_list or (isinstance(value, dict) and isinstance(self._value(path), dict)):
                self.origins[path] = origin
            else:
                self.put(path, {} if isinstance(value, dict) else value, origin)

    def _value(self, path: Path) -> Any:
        found: Any = self.values
        for part in path:
            found = found.get(str(part)) if isinstance(found, dict) else None
        return found

    def _forget(self, path: Path) -> None:
        if path in self.origins:  # otherwise nothing below is known either
            self.origins = {known: at for known, at in self.origins.items() if known[: len(path)] != path}

    def place(self, path: Path, file: str) -> tuple[str, str]:
        """Where to report `path`, at the nearest section that was written, and the field as it was written there.

        A field that a method's own values set begins with `methods`.
        """
        origin = self.origin(path)
        if origin is None:
            return f"{file}:1", dotted(path)
        depth = max(end for end in range(len(path) + 1) if path[:end] in self.origins)
        return origin.where, dotted((origin.field, *path[depth:]))

    def origin(self, path: Path) -> Origin | None:
        """Where the value at `path` was written, or the nearest section around it that was."""
        around = (path[:end] for end in range(len(path), 0, -1))
        return next((self.origins[each] for each in around if each in self.origins), None)


def _below(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """The path and value of everything in a nested value at `path`, each section and list before what is in it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, deeper in inner:
        yield (*path, key), deeper
        yield from _below(deeper, (*path, key))


def absolute_paths(values: dict[str, Any], folder: FilePath) -> dict[str, Any]:
    """The values with their paths to data and to local models made absolute, from `folder`."""
    for path in _DATA_PATHS:
        values = _changed(values, path, lambda name: str(_inside(folder, name)))
    for path in _MODEL_PATHS:
        values = _changed(values, path, lambda name: _model(folder, name))
    return values


def _inside(folder: FilePath, name: str) -> FilePath:
    """An absolute path; what cannot be made one is left as it is, and is not found."""
    try:
        return (folder / FilePath(name).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError):  # as a `~name` that is no user, links in a ring, or U+0000
        return folder / name


def _model(folder: FilePath, name: str) -> str:
    """A name that is a folder's, or can be nothing else, as an absolute path; the hub's names as they are."""
    if name.startswith(BUILTIN_PREFIX) or not name:
        return name
    place = _inside(folder, name)
    return str(place) if is_folder(place) or name.startswith((".", "/", "~")) else name


def _changed(values: dict[str, Any], path: Path, change: Any) -> dict[str, Any]:
    """A copy with the text at `path` changed, or every text where there are lists; the rest is left for the schema."""
    key, rest = str(path[0]), path[1:]

    def renewed(inner: Any) -> Any:
        if isinstance(inner, list):
            return [renewed(item) for item in inner]
        if rest:
            return _changed(inner, rest, change) if isinstance(inner, dict) else inner
        return change(inner) if isinstance(inner, str) else inner

    return {**values, key: renewed(values[key])} if key in values else values


@dataclass(frozen=True)
class Override:
    """A field's path and its new value."""

    path: Path
    value: Any

    @property
    def where(self) -> str:
        """How errors name it."""
        return f"--set {dotted(self.path)}"


def parse_override(text: str) -> Override:
    """Read `field=value`, the value being YAML as in a recipe.

    Raises:
        RecipeError: it is not of that form.
    """
    name, sign, value = text.partition("=")
    path = tuple(name.strip().split("."))
    if not sign or not all(part and part.isprintable() for part in path):
        where = f"--set {printable(text)}"
        raise RecipeError([Problem(where, "", "is not FIELD=VALUE.", "Write it as training.learning_rate=1e-4.")])
    if len(path) > DEEPEST:
        raise RecipeError([Problem(f"--set {dotted(path)}", "", "is nested too deeply.", "A recipe needs few levels.")])
    if path[0] == "methods":
        own = ".".join(path[2:]) or "training.learning_rate"
        remedy = f"Set {own} itself: what is set on the command line holds for the method that runs."
        raise RecipeError([Problem(f"--set {dotted(path)}", dotted(path), "cannot be set there.", remedy)])
    return Override(path, parse_value(value, f"--set {dotted(path)}", path))
