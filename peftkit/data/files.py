"""Rows of data files, read one after the other, each with its place and, where it cannot be read, the reason."""

from __future__ import annotations

import codecs
import csv
import io
import lzma
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import fsspec
import pyarrow.parquet

from peftkit.data.rows import Line, Row, json_lines, json_rows
from peftkit.errors import DataError, FieldError, first_line, printable
from peftkit.recipe.references import data_suffix
from peftkit.recipe.schema import Data
from peftkit.storage import atomic_folder, cache_folder, sha256_of_file, sha256_of_json

__all__ = ["Row", "bring", "count_lines", "file_rows"]

_CHUNK_BYTES = 1 << 20
_ROWS_AT_ONCE = 1000
_LONGEST_VALUE: Final = 1 << 30
_DELIMITERS: Final = (",", ";", "\t", "|")
_VERSION_KEYS: Final = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "md5")
"""What drivers say of a file that changes with its content."""


def file_rows(name: str, data: Data, place: str | None = None) -> Iterator[Row]:
    """The rows of a file, or of what an address names, by its suffix; it is never in memory whole, but for .json.

    Where there is a copy of it, `place` is that.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    kind = data_suffix(name)
    try:
        with _opened(place or name) as file:
            _check_begin(file.peek(4)[:4], name)
            if kind == ".parquet":
                yield from _parquet(file, name)
            elif kind == ".txt":
                yield from _text(name, _lines(file), data.sample_by)
            elif kind == ".json":
                yield from json_rows(name, _whole(file, name))
            elif kind in (".csv", ".tsv"):
                text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
                yield from _table(name, text, data.delimiter or ("\t" if kind == ".tsv" else None))
            else:
                yield from json_lines(name, _lines(file))
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"cannot be read: {_reason(error)}.", where=name, remedy="Check the file.") from error


def bring(address: str, field: str, *, copy: bool) -> str:
    """Where a file is read that is at an address: its copy in the cache, fetched if there is none of it as it is now.

    Without `copy` it is the address, if it can be reached. `field` is the recipe's.

    Raises:
        FieldError: it cannot be reached, or the library for such addresses is not installed.
    """
    try:
        system, path = fsspec.core.url_to_fs(address)
        known: dict[str, Any] = system.info(path)
        return str(_copied(address, system, path, known)) if copy else address
    except ImportError as error:
        what = f"{printable(address)} needs a library that is not installed: {_reason(error)}."
        raise FieldError(field, what, remedy="Install it, or download the file.") from error
    except Exception as error:  # each driver raises its own library's errors
        what = f"{printable(address)} cannot be fetched: {_reason(error)}."
        raise FieldError(field, what, remedy="Check the address and the network, or download the file.") from error


def _copied(address: str, system: Any, path: str, known: dict[str, Any]) -> Path:
    version = {name: str(known[name]) for name in _VERSION_KEYS if known.get(name)}
    name = PurePosixPath(urlsplit(address).path).name
    copies = cache_folder() / "remote"
    place = copies / sha256_of_json([address, version])[:32] / name
    if version and place.is_file():
        return place
    with tempfile.TemporaryDirectory() as work:
        fetched = Path(work, name)
        system.get_file(path, str(fetched))
        if not version:  # nothing says whether it has changed, so that its content names it
            place = copies / sha256_of_file(fetched) / name
        if not place.is_file():
            with atomic_folder(place.parent) as folder:
                shutil.move(fetched, folder / name)
    return place


def _opened(name: str) -> io.BufferedReader:
    """A file's content in bytes, whatever it is compressed with."""
    if PurePosixPath(name).suffix.lower() == ".zst":  # for which fsspec needs a further library before Python 3.14
        return io.BufferedReader(pyarrow.CompressedInputStream(fsspec.open(name, "rb").open(), "zstd"))
    return io.BufferedReader(fsspec.open(name, "rb", compression="infer").open())


def _check_begin(begin: bytes, name: str) -> None:
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
    return printable((getattr(error, "strerror", None) or first_line(error)).rstrip("."))


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


def _table(path: str, lines: Iterator[str], delimiter: str | None) -> Iterator[Row]:
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
    _check_names([heading[place] for place in named], f"{path}:{before + 1}")
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


def _check_names(columns: Iterable[str], where: str) -> None:
    twice = sorted(name for name, count in Counter(columns).items() if count > 1)
    if twice:
        raise DataError(f"has two columns named {printable(twice[0])}.", where=where, remedy="Rename one.")


def _parquet(opened: Any, name: str) -> Iterator[Row]:
    try:
        with pyarrow.parquet.ParquetFile(opened) as file:
            _check_names(file.schema_arrow.names, name)
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
