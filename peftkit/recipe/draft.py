"""A recipe's text with a comment at each field that says why it has its value."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from peftkit.recipe.advice import shown

__all__ = ["Draft", "Reasoned", "draft_text"]

_WIDTH = 120
_PLAIN = re.compile(r"[A-Za-z./][\w./-]*(?::[\w-]+)*")
_NOT_TEXT = re.compile(r"true|false|null", re.IGNORECASE)


@dataclass(frozen=True)
class Reasoned:
    """A value, and why it was chosen."""

    value: str | float | bool
    why: str | None = None


Draft: TypeAlias = Mapping[str, "Reasoned | Draft"]


def draft_text(draft: Draft, heading: str) -> str:
    """The YAML text of a draft, `heading` being its first comment."""
    parts = [*_comment(heading, 0), *_lines(draft, 0)]
    return "\n".join(parts) + "\n"


def _lines(draft: Draft, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, item in draft.items():
        if not isinstance(item, Reasoned):
            if depth == 0:
                yield ""
            yield f"{indent}{name}:"
            yield from _lines(item, depth + 1)
            continue
        line = f"{indent}{name}: {_scalar(item.value)}"
        beside = f"{line} # {item.why}"
        if item.why and len(beside) > _WIDTH:
            yield from _comment(item.why, depth)
        yield beside if item.why and len(beside) <= _WIDTH else line


def _comment(text: str, depth: int) -> list[str]:
    mark = f"{'  ' * depth}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=mark, subsequent_indent=mark, break_on_hyphens=False)


def _scalar(value: str | float | bool) -> str:
    """A value as YAML: text without quotes where it is read as the same text."""
    if not isinstance(value, str):
        return shown(value)
    plain = _PLAIN.fullmatch(value) and not _NOT_TEXT.fullmatch(value)
    return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())
