"""Documents as token ids in a few arrays, made from rows by as many processes as the machine has cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import blake2b
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from peftkit.data.files import Row
from peftkit.data.formats.format import SILENT, RowError, Writing
from peftkit.data.formats.spans import Tokenised
from peftkit.data.sources import Layout
from peftkit.errors import RunError, printable

__all__ = ["Documents", "Encoded", "Encoder", "Ints", "encode", "open_documents", "read_row", "write_documents"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Documents:
    """Documents one after the other; five bytes a token."""

    input_ids: npt.NDArray[np.int32]
    """[tokens]."""

    taught: npt.NDArray[np.bool_]
    """[tokens]: whether the token is in the loss. The first of a document never is."""

    lengths: npt.NDArray[np.int32]
    """[documents]: tokens of each."""

    label_tokens: npt.NDArray[np.int32]
    """[documents]: tokens of each that are in the loss."""

    ends: npt.NDArray[np.bool_]
    """[documents]: whether the last token in the loss is an end token, so that the model learns to stop."""

    digests: npt.NDArray[np.uint64]
    """[documents]: the same for documents of the same tokens and labels."""

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def offsets(self) -> Ints:
        """[documents]: where each begins among all tokens."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        return ends - self.lengths

    def tokens_of(self, number: int) -> npt.NDArray[np.int32]:
        """The tokens of one document."""
        begin = int(self.offsets[number])
        return self.input_ids[begin : begin + int(self.lengths[number])]

    @classmethod
    def join(cls, parts: Sequence[Documents]) -> Documents:
        """All documents of some others, in order."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _DTYPES}
        return cls(**columns)


_DTYPES: Final[dict[str, Any]] = dict(
    zip(
        (field.name for field in fields(Documents)),
        (np.int32, np.bool_, np.int32, np.int32, np.bool_, np.uint64),
        strict=True,
    )
)


def write_documents(folder: Path, batches: Iterable[Documents]) -> None:
    """Write documents into a folder, a file for each array; only one batch is in memory at a time."""
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in _DTYPES}
        for batch in batches:
            for name, file in files.items():
                file.write(getattr(batch, name).astype(_DTYPES[name], copy=False).tobytes())


def open_documents(folder: Path) -> Documents:
    """Documents that were written into a folder; tokens are read from the disk when they are asked for."""
    columns = {}
    for name, dtype in _DTYPES.items():
        path = folder / f"{name}.bin"
        columns[name] = np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
    return Documents(**columns)


_NOTHING: Final[tuple[Any, ...]] = (None, "", [], {}, "[]", "{}")  # values of columns that say nothing
_ROWS_AT_ONCE = 1000
_CHARACTERS_AT_ONCE = 1 << 20  # bounds the memory of a batch where rows are long
_BATCHES_INLINE = 16  # fewer are done before a second process would have started


@dataclass(frozen=True)
class Encoded:
    """A batch of rows as documents, and those that gave none."""

    documents: Documents
    rows: int
    empty: int
    bad: list[str]
    """Place and reason of each row that cannot be used."""

    ignored: Counter[str]
    """Columns that are not used, with the rows that have a value there."""

    notes: Counter[str]
    """What the format has noted, with the documents of which it is true."""


@dataclass(frozen=True)
class Encoder:
    """Makes documents from rows of one layout, as their format encodes them."""

    tokenizer: Any
    layout: Layout
    writing: Writing
    ignore_columns: frozenset[str] = frozenset()
    """Columns that the recipe says are not to be used."""

    def __call__(self, rows: list[Row]) -> Encoded:
        """The documents of a batch, in order."""
        numbers: list[int] = []
        contents: list[Any] = []
        bad: list[tuple[int, RowError]] = []
        ignored: Counter[str] = Counter()
        for number, row in enumerate(rows):
            try:
                unused = self._unused(row)
                content = read_row(row, self.layout, self.writing)
            except RowError as error:
                bad.append((number, error))
                continue
            ignored.update(unused)
            if content is not None:
                numbers.append(number)
                contents.append(content)
        empty = len(rows) - len(bad) - len(contents)
        good: list[Tokenised] = []
        for number, item in zip(numbers, self.layout.form.encode(contents, self.tokenizer, self.writing), strict=True):
            if isinstance(item, RowError):
                bad.append((number, item))
            else:
                good.append(item)
        named = [f"{rows[number].place}: {error}." for number, error in sorted(bad, key=itemgetter(0))]
        notes = Counter(note for item in good for note in item.notes)
        return Encoded(self._documents(good), len(rows), empty, named, ignored, notes)

    def _unused(self, row: Row) -> list[str]:
        """The columns of a row that have a value and are not used.

        Raises:
            RowError: one of them could change what is trained on.
        """
        unused = [name for name, value in row.values.items() if name not in self._used and value not in _NOTHING]
        strange = [name for name in unused if name not in self.ignore_columns and name.casefold() not in SILENT]
        if strange:
            form = self.layout.form.name
            ways = f"format {form} does not use; use data.columns, or name it in data.ignore_columns"
            raise RowError(f"has a column {printable(strange[0])}, which {ways}")
        return unused

    @cached_property
    def _used(self) -> frozenset[str]:
        return self.layout.used

    def _documents(self, found: list[Tokenised]) -> Documents:
        total = sum(len(document.ids) for document in found)
        input_ids = np.fromiter(chain.from_iterable(document.ids for document in found), np.int32, total)
        taught = np.fromiter(chain.from_iterable(document.in_loss for document in found), np.bool_, total)
        lengths = np.array([len(document.ids) for document in found], np.int32)
        label_tokens, ends = np.zeros(len(found), np.int32), np.zeros(len(found), np.bool_)
        digests = np.zeros(len(found), np.uint64)
        start = 0
        for index, length in enumerate(lengths):
            stop = start + int(length)
            taught[start] = False
            places = np.flatnonzero(taught[start:stop])
            label_tokens[index] = len(places)
            ends[index] = bool(len(places)) and int(input_ids[start + places[-1]]) in self.end_tokens
            content = input_ids[start:stop].tobytes() + taught[start:stop].tobytes()
            digests[index] = int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
            start = stop
        return Documents(input_ids, taught, lengths, label_tokens, ends, digests)

    @cached_property
    def end_tokens(self) -> list[int]:
        """The tokens that end what is learnt, at which generation is to stop."""
        return self.layout.form.end_tokens(self.tokenizer, self.writing)


def read_row(row: Row, layout: Layout, writing: Writing) -> Any:
    """The content of a row, as its format reads it, or None if it is an empty text, which is not an error.

    Raises:
        RowError: it cannot be used.
    """
    if row.problem:
        raise RowError(row.problem)
    return layout.form.read(layout.values_of(row), writing)


def encode(rows: Iterable[Row], encoder: Encoder) -> Iterator[Encoded]:
    """Every row, in batches and in order. Memory does not grow with the rows; many of them are shared by processes.

    Raises:
        RunError: a process was killed.
    """
    batches = _batches(rows)
    first = list(islice(batches, _BATCHES_INLINE))
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(first) < _BATCHES_INLINE or workers == 1:
        yield from map(encoder, chain(first, batches))
    else:
        yield from _in_processes(chain(first, batches), encoder, workers)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(value) for value in row.values.values() if isinstance(value, str | list))
        if len(batch) >= _ROWS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _in_processes(batches: Iterator[list[Row]], encoder: Encoder, workers: int) -> Iterator[Encoded]:
    """A few batches ahead of who takes the results, and no more: whoever reads on would fill the memory."""
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with (
        _one_thread_each(),
        ProcessPoolExecutor(workers, multiprocessing.get_context(method), _set_encoder, (encoder,)) as pool,
    ):
        waiting = deque(pool.submit(_encode, batch) for batch in islice(batches, 2 * workers))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(_encode, batch) for batch in islice(batches, 1))
        except BrokenProcessPool as error:
            raise RunError("a process that tokenised was killed.", remedy="Is there memory enough?") from error


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep the tokenizers of the processes from starting threads of their own, which a fork would not survive."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


_of_this_process: list[Encoder] = []


def _set_encoder(encoder: Encoder) -> None:
    _of_this_process[:] = [encoder]


def _encode(rows: list[Row]) -> Encoded:
    return _of_this_process[0](rows)
