"""A source of the recipe as documents of token ids, made once and kept by what it was made from."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from peftkit import console
from peftkit.data.documents import Documents, Encoded, Encoder, Ints, encode, open_documents, write_documents
from peftkit.data.formats import AUTO, FORMATS
from peftkit.data.formats.format import DataFormat, Writing
from peftkit.data.sources import BAD_ROWS_SHOWN, Layout, Rows, layout_of, open_rows
from peftkit.errors import RowsError, RunError
from peftkit.recipe.schema import Data, Source
from peftkit.storage import (
    MANIFEST_NAME,
    atomic_folder,
    cache_folder,
    folder_hashes,
    read_json,
    sha256_of_json,
    write_json,
)

__all__ = ["Corpus", "Part", "Reading", "check_rows", "encoder_of", "load_corpus", "writing_of"]

_VERSION = 3  # of what is kept: another one is made anew
_READING_NAME = "reading.json"


@dataclass
class Reading:
    """What became of the rows of a source."""

    format: str
    why: str
    """How the format was recognised."""

    rows: int = 0
    empty: int = 0
    """Texts of nothing but spaces, as between paragraphs."""

    bad: int = 0
    first_bad: list[str] = field(default_factory=list)
    """Place and reason of the first ten."""

    ignored: dict[str, int] = field(default_factory=dict)
    """Columns that are not used, with the rows that have a value there."""

    notes: dict[str, int] = field(default_factory=dict)
    """What an audit counts of the documents."""

    largest_token: int = 0
    """The greatest token id in the documents."""

    def add(self, batch: Encoded) -> None:
        """Count a batch of rows."""
        self.rows += batch.rows
        self.empty += batch.empty
        self.bad += len(batch.bad)
        self.first_bad += batch.bad[: BAD_ROWS_SHOWN - len(self.first_bad)]
        self.ignored = dict(Counter(self.ignored) + batch.ignored)
        self.notes = dict(Counter(self.notes) + batch.notes)
        self.largest_token = max(self.largest_token, int(batch.documents.input_ids.max(initial=0)))


@dataclass(frozen=True)
class Corpus:
    """One source, tokenised whole."""

    name: str
    identity: dict[str, Any]
    reading: Reading
    documents: Documents
    end_tokens: list[int]
    """The tokens that end what is learnt, at which generation is to stop."""

    time: datetime | None
    """What the template has written as the time; None if it writes none."""

    place_of: Callable[[int], str]
    """Where a document's row is: its file and line. The rows are read again for it."""

    @property
    def form(self) -> DataFormat[Any]:
        """The format of the rows."""
        return FORMATS[self.reading.format]


@dataclass(frozen=True)
class Part:
    """The documents of one source that belong to a data set, by number; some come more than once."""

    corpus: Corpus
    chosen: Ints

    @classmethod
    def whole(cls, corpus: Corpus) -> Part:
        """Every document, once."""
        return cls(corpus, np.arange(len(corpus.documents)))


def load_corpus(source: Source, data: Data, tokenizer: Any, field: str) -> Corpus:
    """Read and tokenise a source, or take what was made of the same content before.

    Raises:
        FieldError: there is no such source, or its columns are not those of the format.
        DataError: the source has no rows, or some that cannot be used and are not to be skipped.
    """
    data = data.of(source)
    rows = open_rows(source, data, field)
    layout, why = layout_of(rows, data, field)
    encoder = encoder_of(layout, data, tokenizer)
    place = cache_folder() / "data" / _key(rows, source, data, encoder)
    folder = _made(place, lambda folder: _write(folder, rows, encoder, data))
    reading = Reading(**{**read_json(folder / _READING_NAME), "why": why})  # it may have been kept for another recipe
    identity = {**rows.identity, "rows": reading.rows}
    place_of = partial(_place_of, rows, encoder)
    documents, time = open_documents(folder), encoder.writing.time
    return Corpus(rows.name, identity, reading, documents, encoder.end_tokens, time, place_of)


def encoder_of(layout: Layout, data: Data, tokenizer: Any) -> Encoder:
    """What makes documents of rows of a layout."""
    writing = replace(writing_of(data), template=layout.form.choose_template(data.template, tokenizer), time=None)
    if layout.form.reads_clock(tokenizer, writing):
        writing = replace(writing, time=data.time or datetime.now())
    chosen = data.format != AUTO  # and so not what the columns of other formats say
    others = {column for form in FORMATS.values() for names in form.layouts for column in names.values()}
    return Encoder(tokenizer, layout, writing, frozenset([*data.ignore_columns, *(others if chosen else ())]))


def writing_of(data: Data) -> Writing:
    """How the rows of a recipe become text."""
    return Writing(data.template, data.train_on, data.system, data.labels, data.time)


def check_rows(reading: Reading, data: Data, name: str) -> None:
    """See that there are no rows that cannot be used, or that they are to be skipped and others are left.

    Raises:
        RowsError: otherwise.
    """
    if reading.bad and (data.on_bad_rows == "error" or reading.bad == reading.rows):
        raise RowsError(reading.first_bad, reading.bad, reading.rows, where=name)


def _place_of(rows: Rows, encoder: Encoder, document: int) -> str:
    """The place of the row that gave a document: rows that gave none are found by encoding them again."""
    seen = 0
    for row in rows:
        if len(encoder([row]).documents):
            if seen == document:
                return row.place
            seen += 1
    return f"{rows.name}, document {document + 1}"


def _key(rows: Rows, source: Source, data: Data, encoder: Encoder) -> str:
    """The same for everything that gives the same documents, whatever its files' names and times."""
    files = rows.identity.get("files")
    layout = encoder.layout
    parts = {
        "version": _VERSION,
        "content": list(files.values()) if files else rows.identity,
        "kinds": [Path(name).suffix for name in files or ()],
        "names": list(files or ()) if data.on_bad_rows == "skip" else None,  # those of the rows that are left out
        "limit": source.limit,
        "sample_by": data.sample_by,
        "shape": [layout.form.name, dict(layout.columns), dict(layout.optional)],
        "writing": {**asdict(encoder.writing), "time": str(encoder.writing.time)},
        "ignored": sorted(encoder.ignore_columns),
        "tokenizer": _tokenizer_hashes(encoder.tokenizer),
    }
    return sha256_of_json(parts)[:32]


def _tokenizer_hashes(tokenizer: Any) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return folder_hashes(Path(folder))


def _made(place: Path, write: Callable[[Path], None]) -> Path:
    """The folder with the documents: at its place, or in a temporary one where the place cannot be written."""
    if (place / MANIFEST_NAME).is_file():
        return place
    try:
        with atomic_folder(place) as folder:
            write(folder)
        return place
    except RunError:
        if (place / MANIFEST_NAME).is_file():  # another process was quicker
            return place
        raise
    except OSError as error:
        console.warning(f"tokens cannot be kept in {place.parent} ({error.strerror}), so they are made each time.")
    temporary = Path(tempfile.mkdtemp(prefix="peftkit-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    write(temporary)
    return temporary


def _write(folder: Path, rows: Rows, encoder: Encoder, data: Data) -> None:
    """Write the documents of a source and what became of its rows; raises RowsError at the end if any are bad."""
    reading = Reading(encoder.layout.form.name, "")
    with console.progress(f"tokenising {Path(rows.name).name}", rows.total) as advance:

        def documents() -> Iterator[Documents]:
            for batch in encode(rows, encoder):
                reading.add(batch)
                advance(batch.rows)
                yield batch.documents

        write_documents(folder, documents())
    check_rows(reading, data, rows.name)
    write_json(folder / _READING_NAME, asdict(reading))
