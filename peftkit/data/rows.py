"""What a row is, and rows of JSON in the shapes that people have: lines, lists, spread objects, columns, a wrapper."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias

from peftkit.errors import DataError

__all__ = ["Line", "Row", "json_lines", "json_rows"]

_DECODER: Final = json.JSONDecoder()
_REMEDY: Final = "Fix it: a list of objects, or an object on each line."
_LONGEST_OBJECT: Final = 1 << 24  # characters; a longer one is a brace that nothing closes


class Row(NamedTuple):
    """One row of a source."""

    place: str
    """File and line, or the source and the row's number from 1."""

    values: dict[str, Any]
    problem: str | None = None
    """Why it could not be read; its values are none then."""


Line: TypeAlias = tuple[int, str, str | None]
"""A line's number from 1, its text, and why it is none, if it is not."""


def json_lines(path: str, lines: Iterable[Line]) -> Iterator[Row]:
    """The objects of a file that has them on lines, one at a time.

    A line may be a list of objects, hold several, or end in a comma. Where the first object is not on one line, objects
    may take several lines all through the file.
    """
    spread: bool | None = None
    held, start = "", 0
    for number, line, wrong in lines:
        place = f"{path}:{start if held else number}"
        if wrong:
            yield Row(place, {}, wrong)
            held = ""
            continue
        if not line.strip():
            continue
        start = start if held else number
        held = f"{held}\n{line}" if held else line
        rows, unfinished = _objects(place, held)
        spread = unfinished if spread is None else spread
        if unfinished and spread and len(held) < _LONGEST_OBJECT:
            continue
        yield from rows
        held = ""
    if held:
        yield from _objects(f"{path}:{start}", held)[0]


def json_rows(path: str, text: str) -> Iterator[Row]:
    """The objects of a JSON file: a list, one object, columns, or a single list within an object.

    Raises:
        DataError: it is not JSON.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            lines = ((number, line, None) for number, line in enumerate(text.splitlines(), start=1))
            yield from json_lines(path, lines)
            return
        raise DataError(f"is not JSON: {error.msg}.", where=f"{path}:{error.lineno}", remedy=_REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{_beyond_python(error)}.", where=path, remedy=_REMEDY) from error
    for number, item in enumerate(_listed(value), start=1):
        yield _object(f"{path}, row {number}", item)


def _objects(place: str, text: str) -> tuple[list[Row], bool]:
    """The objects that a text holds one after the other, and whether it ends within one."""
    rows: list[Row] = []
    position = 0
    while position < len(text):
        try:
            value, position = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            unfinished = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
            return [*rows, Row(place, {}, f"is not JSON: {error.msg} at column {error.colno}")], unfinished
        except (ValueError, RecursionError) as error:
            return [*rows, Row(place, {}, _beyond_python(error))], False
        rows += [_object(place, item) for item in (value if isinstance(value, list) else [value])]
        position += len(text[position:]) - len(text[position:].lstrip(" \t\r\n,"))
    return rows, False


def _listed(value: Any) -> list[Any]:
    """The rows of a JSON value, where it can mean one thing alone."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        return [value]
    columns = list(value.values())
    if len(columns) > 1 and all(isinstance(column, list) for column in columns) and len(set(map(len, columns))) == 1:
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if all(isinstance(column, dict) and _numbers(column) and list(column) == list(columns[0]) for column in columns):
        return [{name: column[key] for name, column in value.items()} for key in columns[0]]
    lists = [column for column in columns if isinstance(column, list) and column]
    if len(lists) == 1 and all(isinstance(item, dict) for item in lists[0]) and not _turns(lists[0]):
        return lists[0]
    return [value]


def _numbers(column: dict[str, Any]) -> bool:
    """Whether keys are pandas' numbers of rows."""
    return bool(column) and all(key.isdecimal() for key in column)


def _turns(items: list[dict[str, Any]]) -> bool:
    return any({"role", "from"} & item.keys() for item in items)


def _object(place: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    kind = "list" if isinstance(value, list) else "text" if isinstance(value, str) else "value"
    return Row(place, {}, f"is a JSON {kind}, not an object with named values")


def _beyond_python(error: ValueError | RecursionError) -> str:
    """Why Python does not read what is JSON by its grammar."""
    return "is nested too deeply" if isinstance(error, RecursionError) else "holds a number of too many digits"
