"""YAML 1.2 as plain values, with the line that each of them comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from peftkit.errors import Problem, RecipeError

__all__ = ["Document", "Path", "dotted", "parse_document"]

Path: TypeAlias = tuple[str | int, ...]

_CORE = "tag:yaml.org,2002:"
_BOOLEANS = {"true": True, "false": False}


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
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError([Problem(place, "", f"is not valid YAML: {what}.", "Mend this line.")]) from error
    if not isinstance(node, MappingNode):
        what = "is empty." if node is None else "is not a mapping of fields."
        raise RecipeError([Problem(f"{name}:1", "", what, "Start from one of `peftkit recipes list`.")])
    reader = _Reader(name)
    values = reader.value(node, ())
    if reader.problems:
        raise RecipeError(reader.problems)
    return Document(values, reader.lines)


class _Reader:
    """Turns nodes into values, collecting lines and problems."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []

    def value(self, node: Node, path: Path) -> Any:
        if node.anchor is not None:
            self._refuse(node, path, "has an anchor.", "Write the value out where it is needed.")
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
            key = key_node.value if isinstance(key_node, ScalarNode) else None
            if key is None or key_node.tag not in (f"{_CORE}str", f"{_CORE}null", f"{_CORE}bool", f"{_CORE}int"):
                self._refuse(key_node, path, "has a key that is no name.", "Use plain names as keys.")
                continue
            inner = (*path, key)
            if key in values:
                first = self.lines[inner]
                remedy = f"It stands on line {first} already; keep one of the two."
                self._refuse(key_node, inner, "comes twice.", remedy)
                continue
            self.lines[inner] = _line(key_node)
            values[key] = self.value(value_node, inner)
        return values

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        text, kind = node.value, str(node.tag).removeprefix(_CORE)
        if kind == "null":
            return None
        if kind == "bool":
            return _BOOLEANS[text.lower()]
        if kind == "int":
            return int(text.replace("_", ""), 10 if text.lstrip("+-").isdigit() else 0)
        if kind == "float":
            return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        if kind not in ("str", "timestamp"):
            self._refuse(node, path, f"has the tag {node.tag}.", "Remove it; values are plain.")
        return text

    def _refuse(self, node: Node, path: Path, what: str, remedy: str) -> None:
        self.problems.append(Problem(f"{self._name}:{_line(node)}", dotted(path), what, remedy))


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
