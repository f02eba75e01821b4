"""A file that a user wrote, as YAML 1.2 in plain values, with the line that each of them comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from peftkit.errors import InputError, Problem, RecipeError, printable

__all__ = ["Document", "Path", "dotted", "is_number", "parse_document", "parse_override", "read_source"]

Path: TypeAlias = tuple[str | int, ...]

_DEEPEST = 50
"""Levels of mappings and lists in a document: far more than a recipe needs, far fewer than Python can nest."""

_LONGEST_NUMBER = 100  # digits of a whole number; Python itself stops at some thousand

# The core schema of YAML 1.2.2, section 10.3.2. ruamel.yaml takes 1_000 and 0b11 for numbers too, which it is not.
_NULL = re.compile(r"(?:null|Null|NULL|~|)")
_BOOLEAN = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_WHOLE = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
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


def parse_document(text: str, name: str, example: str = "Start from one of `peftkit recipes list`.") -> Document:
    """Read a mapping from YAML text; `name` is the file's in errors, and `example` says where to find a whole one.

    Keys that come twice, anchors and tags are refused: what a recipe says should be what it shows.

    Raises:
        RecipeError: every such problem, or the first error of syntax.
    """
    node, tags = _compose(text, name)
    if not isinstance(node, MappingNode):
        what = "is empty." if node is None else "is not a mapping of fields."
        raise RecipeError([Problem(f"{name}:1", "", what, example)])
    reader = _Reader(name, tags)
    values = reader.value(node, ())
    if reader.problems:
        raise RecipeError(reader.problems)
    return Document(values, reader.lines)


def parse_override(text: str) -> tuple[Path, Any]:
    """Read `field=value` of `--set`, the value being YAML as in a recipe; gives the field's path and the value.

    Raises:
        RecipeError: it is not of that form.
    """
    name, sign, value = text.partition("=")
    path = tuple(name.strip().split("."))
    where = f"--set {dotted(path)}"
    if not sign or not all(part and part.isprintable() for part in path):
        remedy = "Write it as training.learning_rate=1e-4."
        raise RecipeError([Problem(f"--set {printable(text)}", "", "is not FIELD=VALUE.", remedy)])
    if len(path) > _DEEPEST:
        raise RecipeError([Problem(where, "", "is nested too deeply.", "A recipe needs few levels.")])
    if path[0] == "methods":
        own = ".".join(path[2:]) or "training.learning_rate"
        remedy = f"Set {own} itself: what is set on the command line holds for the method that runs."
        raise RecipeError([Problem(where, dotted(path), "cannot be set there.", remedy)])
    try:
        node, tags = _compose(value, where)
        reader = _Reader(where, tags)
        found = None if node is None else reader.value(node, path)
        if reader.problems:
            raise RecipeError(reader.problems)
    except RecipeError as error:  # an option has no lines
        fixes = {_FIX: "Fix the value."}
        problems = [
            replace(each, where=where, remedy=fixes.get(str(each.remedy), each.remedy)) for each in error.problems
        ]
        raise RecipeError(problems) from error
    return path, found


def is_number(text: str) -> bool:
    """Whether the text, written without quotes, would be a finite number."""
    return bool(_WHOLE.fullmatch(text) or _FLOAT.fullmatch(text))


def _compose(text: str, name: str) -> tuple[Node | None, dict[int, str]]:
    """The tree of one document, and the tags that are written in it by the position they stand at.

    Aliases are refused before the tree is made, because with them it may be a ring, or grow without end.
    """
    line, depth = 1, 0
    tags: dict[int, str] = {}
    aliases: list[Problem] = []
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            line = _line(event)
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > _DEEPEST:
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
    except (AssertionError, OverflowError, ValueError) as error:
        # ruamel.yaml's own, of a version; or Python's, of what ruamel.yaml makes of an escape
        why = error if isinstance(error, AssertionError) else "an escape is no character"
        raise RecipeError([Problem(f"{name}:{line}", "", f"is not valid YAML: {why}.", _FIX)]) from error


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
            what = f"has the tag {self._tags[node.start_mark.index]}."
            self._refuse(node, path, what, "Remove it; values are plain.")
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            self.lines |= {(*path, index): _line(item) for index, item in enumerate(node.value)}
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)  # YAML has no fourth kind
        return self._scalar(node, path)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._name_of(key_node, path)
            if key is None:
                self._refuse(key_node, path, "has a key that is no name.", "Use plain names as keys.")
                continue
            inner = (*path, key)
            if key in values:
                remedy = f"It is on line {self.lines[inner]} already; keep one of the two."
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
        try:  # JSON escapes a character beyond U+FFFF in two halves
            text = str(node.value).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._refuse(node, path, "holds half of a character, as no text does.", "Write the whole character.")
            return None
        if node.style in ("'", '"', "|", ">"):
            return text
        if _NULL.fullmatch(text):
            return None
        if _BOOLEAN.fullmatch(text):
            return text.lower() == "true"
        if _WHOLE.fullmatch(text):
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


def _line(node: Any) -> int:
    """The line, from 1, of a node or an event."""
    return int(node.start_mark.line) + 1


_LARGEST_FILE = 1 << 18
"""Bytes: room for some thousand paths of data files; beyond it, reading YAML takes minutes."""


def read_source(path: FilePath, kind: str, missing: str) -> str:
    """Read a YAML file, with lines that end in a line feed; `kind` is `recipe` or `study`, and `missing` a remedy.

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
        what = f"is a folder, not a {kind}."
        raise InputError(what, where=str(path), remedy="Name the YAML file in it.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError("is not UTF-8 text.", where=f"{path}:{line}", remedy="Save the file in UTF-8.") from error
    except OSError as error:
        raise InputError(f"cannot be read: {error}.", where=str(path), remedy="Name a file that can be.") from error
    if len(content) > _LARGEST_FILE:
        what = f"is no {kind}: it has more than {_LARGEST_FILE:,} bytes."
        raise InputError(what, where=str(path), remedy=f"Name the YAML file of a {kind}.")
    return text.replace("\r\n", "\n").replace("\r", "\n")
