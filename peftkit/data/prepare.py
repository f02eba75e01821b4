"""A source of the recipe as sequences that are ready to train on, with a count of what became of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from peftkit.data.formats import Example, examples
from peftkit.data.packing import pack
from peftkit.data.read import read_rows, source_identity
from peftkit.data.tokenise import Document, fit, tokenise
from peftkit.errors import DataError, FieldError
from peftkit.recipe.schema import Data, Source

__all__ = ["NO_LABEL", "Counts", "Features", "Prepared", "Sequences", "pairs", "prepare", "prepare_source", "texts"]

NO_LABEL = -100
"""The label of a token that is not taught: the value that torch's cross-entropy leaves out."""

Numbers: TypeAlias = npt.NDArray[np.int32]
Features: TypeAlias = dict[str, Numbers]


class Sequences:
    """Sequences of tokens, one after the other in a few arrays: four bytes a number, and no copy to take one out."""

    def __init__(self, columns: dict[str, Numbers], lengths: Sequence[int]) -> None:
        self._columns = columns
        self._ends = np.cumsum(np.asarray(lengths, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Features:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        return {name: values[start : int(self._ends[index])] for name, values in self._columns.items()}


@dataclass(frozen=True)
class Counts:
    """What became of the documents and tokens of a source."""

    documents: int
    empty_documents: int
    """Left out: an empty text teaches only to stop."""

    untaught_documents: int
    """Left out: the prompt alone fills `max_length`."""

    cut_documents: int
    cut_tokens: int
    """Lost by `truncation: cut`."""

    sequences: int
    tokens: int
    label_tokens: int
    """Tokens that are taught."""


@dataclass(frozen=True)
class Prepared:
    """Sequences and where they come from."""

    dataset: Sequences
    packed: bool
    max_length: int
    counts: Counts
    identity: dict[str, Any]

    def summary(self) -> str:
        """One line for a person."""
        counts = self.counts
        line = (
            f"{counts.documents:,} documents, {counts.sequences:,} sequences, {counts.tokens:,} tokens, "
            f"{counts.label_tokens / counts.tokens:.0%} of them taught"
        )
        if self.packed:
            line += f", packed to {counts.tokens / (counts.sequences * self.max_length):.0%} full"
        if counts.cut_documents:
            line += f", {counts.cut_documents:,} documents cut ({counts.cut_tokens:,} tokens lost)"
        if counts.untaught_documents:
            line += f", {counts.untaught_documents:,} left out as their prompt fills max_length"
        return line

    def record(self) -> dict[str, Any]:
        """What a manifest says about the data."""
        return {**self.identity, **asdict(self.counts), "packed": self.packed}


def prepare(data: Data, tokenizer: Any) -> tuple[Prepared, Prepared | None]:
    """The training data and, where the recipe has it, the validation data.

    Raises:
        InputError: they cannot be read, or teach nothing.
    """
    validation = data.validation
    return (
        prepare_source(data.train, data, tokenizer, "data.train"),
        prepare_source(validation, data, tokenizer, "data.validation") if validation else None,
    )


def prepare_source(source: Source, data: Data, tokenizer: Any, field: str) -> Prepared:
    """Read, tokenise, fit and perhaps pack one source; `field` is where the recipe names it.

    Raises:
        InputError: it cannot be read, or nothing in it would be taught.
    """
    rows = read_rows(source, data, field)
    packed = data.format == "text" if data.packing is None else data.packing
    fitted = _Fitted(data, field)
    documents = list(fitted.documents(tokenise(_filled(examples(rows, data, field), fitted), tokenizer)))
    if not any(len(document.input_ids) > document.given for document in documents):
        raise FieldError(
            field,
            f"none of its {len(rows):,} rows teaches anything: after {fitted.empty} empty ones, "
            f"{fitted.untaught} prompts alone fill max_length {data.max_length}.",
            remedy="Raise data.max_length, or check format and columns.",
        )
    bins = pack([len(document.input_ids) for document in documents], data.max_length) if packed else None
    dataset = _sequences(documents, bins)
    tokens = sum(len(document.input_ids) for document in documents)
    counts = Counts(
        documents=fitted.seen,
        empty_documents=fitted.empty,
        untaught_documents=fitted.untaught,
        cut_documents=fitted.cut,
        cut_tokens=fitted.cut_tokens,
        sequences=len(dataset),
        tokens=tokens,
        label_tokens=tokens - sum(min(document.given, len(document.input_ids)) for document in documents),
    )
    return Prepared(dataset, packed, data.max_length, counts, source_identity(source, rows))


def texts(source: Source, data: Data, field: str) -> Iterator[str]:
    """The whole text of each document, to train a tokenizer on."""
    for example in examples(read_rows(source, data, field), data, field):
        yield (example.prompt or "") + example.completion


def pairs(source: Source, data: Data, field: str) -> list[tuple[str, str]]:
    """Each prompt with its completion, to compare what a model writes with.

    Raises:
        FieldError: the rows are plain text, without prompts.
    """
    if data.format == "text":
        raise FieldError("data.format", "text has no completions to compare with.", remedy="Use completion data.")
    return [
        (example.prompt or "", example.completion) for example in examples(read_rows(source, data, field), data, field)
    ]


class _Fitted:
    """Fits documents to the longest sequence, counting on the way."""

    def __init__(self, data: Data, field: str) -> None:
        self._max_length = data.max_length
        self._truncation = data.truncation or ("split" if data.format == "text" else "cut")
        self._field = field
        self.seen = self.empty = self.untaught = self.cut = self.cut_tokens = 0

    def documents(self, whole: Iterator[Document]) -> Iterator[Document]:
        for document in whole:
            length = len(document.input_ids)
            if self._truncation == "error":
                if length > self._max_length:
                    raise DataError(
                        f"document {self.seen} has {length} tokens, more than max_length {self._max_length}.",
                        where=self._field,
                        remedy="Raise data.max_length, or set data.truncation: cut.",
                    )
                yield document
                continue
            if self._truncation == "cut" and length > self._max_length:
                if document.given >= self._max_length:
                    self.untaught += 1
                    continue
                self.cut += 1
                self.cut_tokens += length - self._max_length
            yield from fit(document, self._max_length, self._truncation)


def _filled(rows: Iterator[Example], fitted: _Fitted) -> Iterator[Example]:
    """The examples that say anything; the others are counted."""
    for example in rows:
        if example.completion.strip():
            fitted.seen += 1
            yield example
        else:
            fitted.empty += 1


def _sequences(documents: list[Document], bins: list[list[int]] | None) -> Sequences:
    """The documents laid out one after the other: each a sequence, or several in each as `bins` says."""
    order = [index for members in bins for index in members] if bins else range(len(documents))
    lengths = [len(documents[index].input_ids) for index in order]
    input_ids = np.fromiter((token for index in order for token in documents[index].input_ids), np.int32, sum(lengths))
    labels = input_ids.copy()
    start = 0
    for index, length in zip(order, lengths, strict=True):
        labels[start : start + min(documents[index].given, length)] = NO_LABEL
        start += length
    columns: dict[str, Numbers] = {"input_ids": input_ids, "labels": labels}
    if bins is None:
        return Sequences(columns, lengths)
    columns["position_ids"] = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    return Sequences(columns, [sum(len(documents[index].input_ids) for index in members) for members in bins])
