"""Tables of text: columns beside each other in a width, with nothing cut off.

Rich draws them too, and takes 0.1 s for what `peftkit explain` prints.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import zip_longest

__all__ = ["lay_out"]

_BETWEEN = 2
"""Spaces between two columns."""

_SHORT = 12
"""A column whose cells have no more characters than this stays on one line."""

_NARROWEST = 4
"""Other columns get no narrower than this: a narrower terminal breaks the lines itself."""


def lay_out(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, numeric: bool) -> Iterator[list[str]]:
    """The lines of a table's heading and then of each row.

    Args:
        columns: the headings.
        rows: a cell for each column.
        width: the characters that a line may have; where columns need more, long cells go on in further lines.
        numeric: whether every column but the first is set flush right.
    """
    lengths = [max(map(_longest, (name, *cells))) for name, *cells in zip(columns, *rows, strict=True)]
    fixed = [max(map(_longest, cells), default=0) <= _SHORT for cells in zip(*rows, strict=True)] or [True] * len(
        columns
    )
    widths = _fitted(lengths, fixed, width - _BETWEEN * (len(columns) - 1))
    for row in (columns, *rows):
        cells = [_wrapped(cell, space) for cell, space in zip(row, widths, strict=True)]
        yield [_line(parts, widths, numeric) for parts in zip_longest(*cells, fillvalue="")]


def _fitted(lengths: list[int], fixed: list[bool], room: int) -> list[int]:
    """The width of each column: the longest give way until all have room, fixed ones only after all others."""
    caps = range(max(*lengths, _NARROWEST), _NARROWEST - 1, -1)
    for kept in (fixed, [False] * len(lengths)):
        for cap in caps:
            widths = [length if keeps else min(length, cap) for length, keeps in zip(lengths, kept, strict=True)]
            if sum(widths) <= room:
                return widths
    return widths


def _line(parts: Sequence[str], widths: Sequence[int], numeric: bool) -> str:
    gaps = [" " * (width - _cells(part)) for part, width in zip(parts, widths, strict=True)]
    flush = (
        gap + part if numeric and index else part + gap
        for index, (part, gap) in enumerate(zip(parts, gaps, strict=True))
    )
    return (" " * _BETWEEN).join(flush).rstrip()


def _wrapped(text: str, width: int) -> list[str]:
    """A text in lines of no more than `width` characters, broken between words or, where one is longer, within it."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        if _cells(paragraph) <= width:
            lines.append(paragraph)
            continue
        line = ""
        for word in paragraph.split(" "):
            joined = f"{line} {word}" if line else word
            if _cells(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            *whole, line = _folded(word, width)
            lines += whole
        lines.append(line)
    return lines


def _folded(word: str, width: int) -> list[str]:
    """A word in parts of no more than `width` characters."""
    parts = [""]
    for character in word:
        if _cells(parts[-1] + character) > width and parts[-1]:
            parts.append("")
        parts[-1] += character
    return parts


def _longest(text: str) -> int:
    return max(map(_cells, text.split("\n")))


def _cells(text: str) -> int:
    """How many characters wide a terminal shows a text: two for a wide one of East Asia, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
