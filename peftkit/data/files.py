"""Rows of data files, read one after the other, each with its place and, where it cannot be read, the reason."""

from __future__ import annotations

import codecs
import io
import lzma
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import fsspec
import pyarrow.parquet

from peftkit.errors import DataError, printable
from peftkit.recipe.references import data_suffix
from peftkit.recipe.schema import Data

__all__ = ["Line", "Row", "check_names", "count_lines", "file_rows"]

_CHUNK_BYTES = 1 << 20
_ROWS_AT_ONCE = 1000


class Row(NamedTuple):
    """One row of a source."""

    place: str
    """File and line, or the source and the row's number from 1."""

    values: dict[str, Any]
    problem: str | None = None
    """Why it could not be read; its values are none then."""


Line: TypeAlias = tuple[int, str, str | None]
"""A line's number from 1, its text, and why it is none, if it is not."""


def file_rows(name: str, data: Data, place: str | None = None) -> Iterator[Row]:
    """The rows of a file, or of what an address names, by its suffix; it is never in memory whole, but for .json.

    Where there is a copy of it, `place` is that.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    from peftkit.data.csv_files import table_rows
    from peftkit.data.json_files import json_lines, json_rows

    kind = data_suffix(name)
    try:
        with _opened(place or name) as file:
            _check_begin(file, name)
            if kind == ".parquet":
                yield from _parquet(file, name)
            elif kind == ".txt":
                yield from _text(name, _lines(file), data.sample_by)
            elif kind == ".json":
                yield from json_rows(name, _whole(file, name))
            elif kind in (".csv", ".tsv"):
                text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
                yield from table_rows(name, text, data.delimiter or ("\t" if kind == ".tsv" else None))
            else:
                yield from json_lines(name, _lines(file))
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"cannot be read: {_reason(error)}.", where=name, remedy="Check the file.") from error


def _opened(name: str) -> Any:
    """A file's content in bytes, whatever it is compressed with.

    Raises:
        DataError: the library for its compression is not there.
    """
    try:
        return fsspec.open(name, "rb", compression="infer")
    except (ImportError, ValueError) as error:
        remedy = f"pip install zstandard, or decompress the file ({_reason(error)})."
        raise DataError(f"is compressed with {Path(name).suffix[1:]}.", where=name, remedy=remedy) from error


def _check_begin(file: Any, name: str) -> None:
    begin = file.read(4)
    file.seek(0)
    if not begin:
        raise DataError("is empty.", where=name, remedy="Give a file with rows.")
    if begin[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or (b"\0" in begin and begin != b"PAR1"):
        raise DataError("is UTF-16 or binary, not UTF-8.", where=name, remedy="Save the file in UTF-8.")


def _whole(file: Any, name: str) -> str:
    try:
        text: str = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError("is not UTF-8.", where=f"{name}:{line}", remedy="Save the file in UTF-8.") from error
    return text


def _reason(error: Exception) -> str:
    """The first line of what a library says, or of the system's error."""
    told = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return printable(told.splitlines()[0].rstrip("."))


def count_lines(path: Path) -> int:
    """Ends of lines in a file: about as many as it has rows, unless it is a table of columns."""
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""))


def _text(path: str, lines: Iterator[Line], sample_by: str) -> Iterator[Row]:
    """A document for each line, each paragraph between empty lines, or the whole file."""
    if sample_by == "line":
        yield from (Row(f"{path}:{number}", {"text": line}, wrong) for number, line, wrong in lines)
        return
    held: list[str] = []
    start, problem = 1, None
    for number, line, wrong in lines:
        if sample_by == "paragraph" and not line.strip() and not wrong:
            if held:
                yield Row(f"{path}:{start}", {"text": "\n".join(held)}, problem)
            held, problem = [], None
            continue
        start = start if held else number
        held.append(line)
        problem = problem or (f"line {number} {wrong}" if wrong else None)
    if held:
        yield Row(f"{path}:{start}", {"text": "\n".join(held)}, problem)


def check_names(columns: Iterable[str], where: str) -> None:
    """See that no two columns have one name.

    Raises:
        DataError: some do.
    """
    twice = sorted(name for name, count in Counter(columns).items() if count > 1)
    if twice:
        raise DataError(f"has two columns named {printable(twice[0])}.", where=where, remedy="Rename one.")


def _parquet(opened: Any, name: str) -> Iterator[Row]:
    try:
        with pyarrow.parquet.ParquetFile(opened) as file:
            check_names(file.schema_arrow.names, name)
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for values, problem in _values(batch):
                    number += 1
                    yield Row(f"{name}, row {number}", values, problem)
    except (pyarrow.ArrowException, ValueError) as error:  # as a name of a column that is no UTF-8
        raise DataError(f"is not Parquet: {_reason(error)}.", where=name, remedy="Check what it holds.") from error


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


def _lines(file: Iterable[bytes]) -> Iterator[Line]:
    for number, raw in enumerate(file, start=1):
        raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        try:
            yield number, raw.rstrip(b"\r\n").decode(), None
        except UnicodeDecodeError as error:
            yield number, "", f"is not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}"
