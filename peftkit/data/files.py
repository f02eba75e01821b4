"""Rows of data files, read one after the other, each with its place and, where it cannot be read, the reason."""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet

from peftkit.errors import DataError, printable
from peftkit.recipe.references import DATA_SUFFIXES
from peftkit.recipe.schema import Data

__all__ = ["Row", "count_lines", "file_rows"]

_CHUNK_BYTES = 1 << 20
_ROWS_AT_ONCE = 1000
_LONGEST_CSV_VALUE = 1 << 30


class Row(NamedTuple):
    """One row of a source."""

    place: str
    """File and line, or the source and the row's number from 1."""

    values: dict[str, Any]
    problem: str | None = None
    """Why it could not be read; its values are none then."""


def file_rows(path: Path, data: Data) -> Iterator[Row]:
    """The rows of a file, by its suffix; the file is never in memory as a whole, but for .json.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".txt": partial(_text, sample_by=data.sample_by),
        ".jsonl": _json_lines,
        ".json": _json,
        ".csv": partial(_table, delimiter=","),
        ".tsv": partial(_table, delimiter="\t"),
        ".parquet": _parquet,
    }
    assert readers.keys() == set(DATA_SUFFIXES)
    try:
        if not path.stat().st_size:
            raise DataError("is empty.", where=str(path), remedy="Give a file with rows.")
        yield from readers[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"cannot be read: {_reason(error)}.", where=str(path), remedy="Check the file.") from error


def _reason(error: Exception) -> str:
    """The first line of what a library says, or of the system's error."""
    told = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return printable(told.splitlines()[0].rstrip("."))


def count_lines(path: Path) -> int:
    """Ends of lines in a file: about as many as it has rows, unless it is a table of columns."""
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""))


def _text(path: Path, sample_by: str) -> Iterator[Row]:
    """A document for each line, each paragraph between empty lines, or the whole file."""
    if sample_by == "line":
        yield from (Row(f"{path}:{number}", {"text": line}, wrong) for number, line, wrong in _lines(path))
        return
    lines: list[str] = []
    start, problem = 1, None
    for number, line, wrong in _lines(path):
        if sample_by == "paragraph" and not line.strip() and not wrong:
            if lines:
                yield Row(f"{path}:{start}", {"text": "\n".join(lines)}, problem)
            lines, problem = [], None
            continue
        start = start if lines else number
        lines.append(line)
        problem = problem or (f"line {number} {wrong}" if wrong else None)
    if lines:
        yield Row(f"{path}:{start}", {"text": "\n".join(lines)}, problem)


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line, wrong in _lines(path):
        if wrong:
            yield Row(f"{path}:{number}", {}, wrong)
        elif line.strip():
            yield _json_line(f"{path}:{number}", line)


def _json_line(place: str, line: str) -> Row:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return Row(place, {}, f"is not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return Row(place, {}, _beyond_python(error))
    return _object(place, value)


def _beyond_python(error: ValueError | RecursionError) -> str:
    """Why Python does not read what is JSON by its grammar."""
    return "is nested too deeply" if isinstance(error, RecursionError) else "holds a number of too many digits"


def _object(place: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    return Row(place, {}, f"is a JSON {_json_kind(value)}, not an object with named values")


def _json_kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "text" if isinstance(value, str) else "value"


def _json(path: Path) -> Iterator[Row]:
    """A list of objects; or one object a line, which many files of this suffix are."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError("is not UTF-8.", where=f"{path}:{line}", remedy="Save the file in UTF-8.") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _json_lines(path)
            return
        raise DataError(
            f"is not JSON: {error.msg}.", where=f"{path}:{error.lineno}", remedy="Fix it: a list of objects."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{_beyond_python(error)}.", where=str(path), remedy="Fix it: a list of objects.") from error
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        yield _object(f"{path}, row {number}", item)


def _table(path: Path, delimiter: str) -> Iterator[Row]:
    """Rows under a heading. What is no UTF-8 is carried as surrogates, which no row may hold."""
    csv.field_size_limit(_LONGEST_CSV_VALUE)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            heading = next(reader, [])
        except csv.Error as error:
            what = f"its heading is not CSV: {printable(str(error))}."
            raise DataError(what, where=f"{path}:1", remedy="Fix it.") from error
        _check_names(heading, f"{path}:1")
        line = reader.line_num + 1
        while True:
            try:
                values = next(reader, None)
            except csv.Error as error:
                yield Row(f"{path}:{line}", {}, f"is not CSV: {printable(str(error))}")
                line = reader.line_num + 1
                continue
            if values is None:
                return
            if values:
                wrong = len(values) != len(heading)
                problem = f"has {len(values)} values, but the heading has {len(heading)}" if wrong else None
                yield Row(f"{path}:{line}", dict(zip(heading, values, strict=False)), problem)
            line = reader.line_num + 1


def _check_names(columns: Iterable[str], where: str) -> None:
    twice = sorted(name for name, count in Counter(columns).items() if count > 1)
    if twice:
        raise DataError(f"has two columns named {printable(twice[0])}.", where=where, remedy="Rename one.")


def _parquet(path: Path) -> Iterator[Row]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_names(file.schema_arrow.names, str(path))
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for values, problem in _values(batch):
                    number += 1
                    yield Row(f"{path}, row {number}", values, problem)
    except (pyarrow.ArrowException, ValueError) as error:  # as a name of a column that is no UTF-8
        raise DataError(f"is not Parquet: {_reason(error)}.", where=str(path), remedy="Check what it holds.") from error


def _values(batch: Any) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Each row of a batch, or why Python has no values for it: a text that is no UTF-8, or a date beyond its years."""
    try:
        rows = batch.to_pylist()
    except (OverflowError, ValueError) as error:
        if len(batch) == 1:
            yield {}, f"cannot be read: {_reason(error)}"
        else:
            for number in range(len(batch)):
                yield from _values(batch.slice(number, 1))
        return
    yield from ((values, None) for values in rows)


def _lines(path: Path) -> Iterator[tuple[int, str, str | None]]:
    """Each line with its number from 1, or why it is no text."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            try:
                yield number, raw.rstrip(b"\r\n").decode(), None
            except UnicodeDecodeError as error:
                wrong = f"is not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}"
                yield number, "", wrong
