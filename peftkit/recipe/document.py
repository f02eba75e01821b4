"""A file that a user wrote, as YAML 1.2 in plain values, with the line that each of them comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from peftkit.errors import InputError, Problem, RecipeError, printable

__all__ = ["DEEPEST", "Document", "Path", "dotted", "is_number", "parse_document", "parse_value", "read_source"]

Path: TypeAlias = tuple[str | int, ...]

DEEPEST = 50
"""Levels of mappings and lists in a document: far more than a recipe needs, far fewer than Python can nest."""

_LONGEST_NUMBER = 100  # digits of a whole number; Python itself stops at some thousand

# The core schema of YAML 1.2.2, section 10.3.2. ruamel.yaml takes 1_000 and 0b11 for numbers too, which it is not.
_NULL = re.compile(r"(?:null|Null|NULL|~|)")
_BOOLEAN = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_FIX = "Fix this line."
_NOT_FINITE = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))")


@dataclass
class Document:
    """A file's values and the lines of their keys, counted from 1."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Path, int] = field(default_factory=dict)


def dotted(path: Path) -> str:
    """A path as people write it: `data.train.path`."""
    return ".".join(str(part) for part in path)


def parse_document(text: str, name: str) -> Document:
    """Read a mapping from YAML text; `name` is the file's in errors.

    Keys that come twice, anchors and tags are refused: what a recipe says should be what it shows.

    Raises:
        RecipeError: every such problem, or the first error of syntax.
    """
    node, tags = _compose(text, name)
    if not isinstance(node, MappingNode):
        what = "is empty." if node is None else "is not a mapping of fields."
        raise RecipeError([Problem(f"{name}:1", "", what, "Start from one of `peftkit recipes list`.")])
    reader = _Reader(name, tags)
    values = reader.value(node, ())
    if reader.problems:
        raise RecipeError(reader.problems)
    return Document(values, reader.lines)


def parse_value(text: str, name: str, path: Path) -> Any:
    """Read one value by a recipe's own rules of YAML; `name` and `path` are the option's and the field's in errors.

    Raises:
        RecipeError: as `parse_document` does, without lines.
    """
    try:
        node, tags = _compose(text, name)
        reader = _Reader(name, tags)
        value = None if node is None else reader.value(node, path)
    except RecipeError as error:
        raise RecipeError([_on_an_option(problem, name) for problem in error.problems]) from error
    if reader.problems:
        raise RecipeError([_on_an_option(problem, name) for problem in reader.problems])
    return value


def is_number(text: str) -> bool:
    """Whether the text, written without quotes, would be a finite number."""
    return any(kind.fullmatch(text) for kind in (_DECIMAL, _OCTAL, _HEXADECIMAL, _FLOAT))


def _on_an_option(problem: Problem, name: str) -> Problem:
    remedy = "Fix the value." if problem.remedy == _FIX else problem.remedy
    return Problem(name, problem.field, problem.what, remedy)


def _compose(text: str, name: str) -> tuple[Node | None, dict[int, str]]:
    """The tree of one document, and the tags that are written in it by the position they stand at.

    Aliases are refused before the tree is made, because with them it may be a ring, or grow without end.
    """
    line = 1
    try:
        tags: dict[int, str] = {}
        aliases: list[Problem] = []
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(text):
            line = _line(event)
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > DEEPEST:
                problem = Problem(f"{name}:{line}", "", "is nested too deeply.", "A recipe needs few levels.")
                raise RecipeError([problem])
            if isinstance(event, AliasEvent):
                what = f"has the alias *{printable(str(event.anchor))}."
                aliases.append(Problem(f"{name}:{line}", "", what, "Write the value out where it is needed."))
            elif getattr(event, "tag", None):
                tags[event.start_mark.index] = printable(str(event.tag))
        if aliases:
            raise RecipeError(aliases)
        yaml = YAML(typ="safe", pure=True)
        yaml.composer.warn_double_anchors = False  # every anchor is refused
        return yaml.compose(text), tags
    except YAMLError as error:
        raise RecipeError([_syntax_problem(error, text, name)]) from error
    except AssertionError as error:  # ruamel.yaml's, of a version
        raise RecipeError([Problem(f"{name}:{line}", "", f"is not valid YAML: {error}.", _FIX)]) from error
    except (OverflowError, ValueError) as error:  # Python's, of what ruamel.yaml makes of an escape
        what = "is not valid YAML: an escape is no character."
        raise RecipeError([Problem(f"{name}:{line}", "", what, _FIX)]) from error


def _syntax_problem(error: YAMLError, text: str, name: str) -> Problem:
    mark, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    line = 1
    if mark is not None:
        line = min(mark.line, max(text.count("\n") - text.endswith("\n"), 0)) + 1  # the end belongs to the last line
    elif isinstance(position, int):  # a character that YAML forbids has no mark
        line = text.count("\n", 0, position) + 1
    if "found another document" in what:
        return Problem(f"{name}:{line}", "", "has a second document.", "Keep one recipe in a file, without `---`.")
    return Problem(f"{name}:{line}", "", f"is not valid YAML: {what}.", _FIX)


class _Reader:
    """Turns nodes into values, collecting lines and problems."""

    def __init__(self, name: str, tags: dict[int, str]) -> None:
        self._file = name
        self._tags = tags
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []

    def value(self, node: Node, path: Path) -> Any:
        if node.anchor is not None:
            self._refuse(node, path, "has an anchor.", "Write the value out where it is needed.")
        if node.start_mark.index in self._tags:
            self._refuse(
                node, path, f"has the tag {self._tags[node.start_mark.index]}.", "Remove it; values are plain."
            )
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self._item(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)  # YAML has no fourth kind
        return self._scalar(node, path)

    def _item(self, node: Node, path: Path) -> Any:
        self.lines[path] = _line(node)
        return self.value(node, path)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._name_of(key_node, path)
            if key is None:
                self._refuse(key_node, path, "has a key that is no name.", "Use plain names as keys.")
                continue
            inner = (*path, key)
            if key in values:
                first = self.lines[inner]
                remedy = f"It is on line {first} already; keep one of the two."
                self._refuse(key_node, inner, "comes twice.", remedy)
                continue
            self.lines[inner] = _line(key_node)
            values[key] = self.value(value_node, inner)
        return values

    def _name_of(self, node: Node, path: Path) -> str | None:
        """The plain name that a key is; None if it is anything else."""
        key = self._scalar(node, path) if isinstance(node, ScalarNode) else None
        if node.anchor or node.start_mark.index in self._tags or not isinstance(key, str):
            return None
        return key if key.isprintable() and key not in ("", "<<") else None

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        text = _whole(str(node.value))
        if text is None:
            self._refuse(node, path, "holds half of a character, as no text does.", "Write the whole character.")
            return None
        if node.style in ("'", '"', "|", ">"):
            return text
        if _NULL.fullmatch(text):
            return None
        if _BOOLEAN.fullmatch(text):
            return text.lower() == "true"
        if _DECIMAL.fullmatch(text) or _OCTAL.fullmatch(text) or _HEXADECIMAL.fullmatch(text):
            if len(text) > _LONGEST_NUMBER:
                self._refuse(node, path, f"is a number of {len(text)} digits.", "Write a shorter one.")
                return 0
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _NOT_FINITE.fullmatch(text):
            return float(text.lower().replace(".", ""))
        return text

    def _refuse(self, node: Node, path: Path, what: str, remedy: str) -> None:
        self.problems.append(Problem(f"{self._file}:{_line(node)}", dotted(path), what, remedy))


def _whole(text: str) -> str | None:
    """The text with halves of characters, as JSON escapes those beyond U+FFFF, put together; None if one is alone."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return None


def _line(node: Any) -> int:
    """The line, from 1, of a node or an event."""
    return int(node.start_mark.line) + 1


_LARGEST_FILE = 1 << 18
"""Bytes: room for some thousand paths of data files; beyond it, reading YAML takes minutes."""


def read_source(path: FilePath, kind: str, missing: str) -> str:
    """Read a YAML file, with lines that end in a line feed.

    Args:
        path: the file.
        kind: what it should be: `recipe`, `study`.
        missing: what to do where there is none.

    Raises:
        InputError: there is none, or it cannot be one.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        text = content.decode()
    except FileNotFoundError as error:
        raise InputError(f"there is no such {kind}.", where=str(path), remedy=missing) from error
    except IsADirectoryError as error:
        remedy = "Name the YAML file in it."
        raise InputError(f"is a folder, not a {kind}.", where=str(path), remedy=remedy) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError("is not UTF-8 text.", where=f"{path}:{line}", remedy="Save the file in UTF-8.") from error
    except OSError as error:
        raise InputError(f"cannot be read: {error}.", where=str(path), remedy="Name a file that can be.") from error
    if len(content) > _LARGEST_FILE:
        what = f"is no {kind}: it has more than {_LARGEST_FILE:,} bytes."
        raise InputError(what, where=str(path), remedy=f"Name the YAML file of a {kind}.")
    return text.replace("\r\n", "\n").replace("\r", "\n")
