"""Rows of tables with a separator, whichever it is."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

from peftkit.data.files import Row, check_names
from peftkit.errors import DataError, printable

__all__ = ["table_rows"]

_LONGEST_VALUE: Final = 1 << 30
_DELIMITERS: Final = (",", ";", "\t", "|")


def table_rows(path: str, lines: Iterator[str], delimiter: str | None) -> Iterator[Row]:
    """Rows under a heading.

    The separator is `delimiter`, that of a first line `sep=;` as Excel writes it, or the one of comma, semicolon, tab
    and bar that the heading has. Columns without a name are left out where they are empty.

    Raises:
        DataError: the heading cannot be read.
    """
    csv.field_size_limit(_LONGEST_VALUE)
    first, before = next(lines, ""), 0
    if first.lower().startswith("sep=") and len(first.strip()) == 5:
        delimiter, first, before = delimiter or first[4], next(lines, ""), 1
    delimiter = delimiter or _delimiter_of(first, f"{path}:{before + 1}")
    spaced = f"{delimiter} " in first and delimiter != "\t"
    reader = csv.reader(chain([first], lines), delimiter=delimiter, skipinitialspace=spaced, strict=True)
    try:
        heading = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        what = f"its heading is not CSV: {printable(str(error))}."
        raise DataError(what, where=f"{path}:{before + 1}", remedy="Fix it.") from error
    named = [place for place, name in enumerate(heading) if name]
    check_names([heading[place] for place in named], f"{path}:{before + 1}")
    yield from _rows(path, reader, heading, named, before)


def _rows(path: str, reader: Any, heading: list[str], named: list[int], before: int) -> Iterator[Row]:
    unnamed = set(range(len(heading))) - set(named)
    while True:
        place = f"{path}:{before + reader.line_num + 1}"
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield Row(place, {}, f"is not CSV: {printable(str(error))}")
            continue
        if values is None:
            return
        surplus = [value for index, value in enumerate(values) if (index in unnamed or index >= len(heading)) and value]
        if values and (surplus or len(values) <= max(named, default=0)):
            yield Row(place, {}, f"has {len(values)} values, but the heading has {len(heading)}")
        elif values:
            yield Row(place, {heading[index]: values[index] for index in named})


def _delimiter_of(heading: str, where: str) -> str:
    found = [delimiter for delimiter in _DELIMITERS if len(_split(heading, delimiter)) > 1]
    if len(found) > 1:
        shown = " and ".join(map(repr, found))
        raise DataError(
            f"its heading has {shown}.", where=where, remedy="Set data.delimiter to the one that separates."
        )
    return found[0] if found else ","


def _split(heading: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([heading], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []
