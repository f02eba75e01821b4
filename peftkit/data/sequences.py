"""Documents fitted to the longest sequence, packed if wanted, and laid out as the sequences to train on."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from peftkit.data.corpus import Part
from peftkit.data.documents import Documents, Ints
from peftkit.data.formats import FORMATS
from peftkit.data.formats.format import NO_LABEL
from peftkit.errors import DataError
from peftkit.recipe.schema import Data

__all__ = [
    "WINDOW",
    "Features",
    "Fitted",
    "Pieces",
    "Sequences",
    "Truncation",
    "arrange",
    "fit",
    "pack",
    "packs",
    "truncation_of",
]

WINDOW = 16_384
"""Documents that are packed at once: enough that waste is below one percent, few enough to do while reading on."""


def pack(lengths: Ints, max_length: int, window: int = WINDOW) -> Iterator[list[int]]:
    """Put documents of the given lengths into sequences of at most `max_length` tokens.

    Best-fit decreasing: of each window, the longest first, each into the fullest sequence that has room (Johnson 1974:
    at most 11/9 of the fewest sequences). Every index comes exactly once; the sequences of a window are in the order of
    their first document, and so are the documents in them. A document longer than `max_length` raises ValueError.
    """
    for start in range(0, len(lengths), window):
        for sequence in _best_fit(lengths[start : start + window].tolist(), max_length):
            yield [start + index for index in sequence]


def _best_fit(lengths: list[int], max_length: int) -> list[list[int]]:
    open_by_room: dict[int, list[list[int]]] = {}
    rooms: list[int] = []  # the rooms that some sequence has, sorted: never more of them than max_length
    sequences: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if length > max_length:
            raise ValueError(f"a document has {length} tokens, more than {max_length}")
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            sequence = open_by_room[room].pop()
            if not open_by_room[room]:
                del open_by_room[room], rooms[place]
        else:
            room, sequence = max_length, []
            sequences.append(sequence)
        sequence.append(index)
        left = room - length
        if left:
            if left not in open_by_room:
                open_by_room[left] = []
                insort(rooms, left)
            open_by_room[left].append(sequence)
    return sorted(sorted(sequence) for sequence in sequences)


Features: TypeAlias = dict[str, npt.NDArray[np.int32]]
Truncation: TypeAlias = Literal["split", "cut", "error"]
_LONGEST = int(np.iinfo(np.int32).max)  # no document has more tokens


@dataclass(frozen=True)
class Pieces:
    """Parts of documents, each of which goes into a sequence whole."""

    offset: Ints
    """[pieces]: its first token among all tokens of its source."""

    length: Ints
    """[pieces]: tokens."""

    @classmethod
    def join(cls, parts: Sequence[Pieces]) -> Pieces:
        """All pieces of some others, in order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("offset", "length")))


@dataclass(frozen=True)
class Fitted:
    """Documents of one source in pieces, and what that cost."""

    pieces: Pieces
    label_tokens: int
    ends: int
    """Documents that end in an end token that is in the loss and has not been cut off."""

    split_documents: int
    cut_documents: int
    cut_tokens: int
    untaught_documents: int
    """Left out: none of the tokens that fit is in the loss."""

    @classmethod
    def total(cls, parts: Sequence[Fitted], pieces: Pieces) -> Fitted:
        """The sums of several sources, whose pieces have been put together."""
        names = [field.name for field in fields(cls) if field.name != "pieces"]
        return cls(pieces, *(sum(getattr(part, name) for part in parts) for name in names))


def fit(documents: Documents, chosen: Ints, max_length: int, truncation: Truncation, *, name: str) -> Fitted:
    """The chosen documents in pieces of at most `max_length` tokens; `name` is what errors call their source.

    Raises:
        DataError: one is longer, and `truncation` is `error`.
    """
    lengths = documents.lengths[chosen].astype(np.int64)
    offsets = documents.offsets[chosen]
    labels = documents.label_tokens[chosen].astype(np.int64)
    long = lengths > max_length
    if truncation == "error" and long.any():
        worst = int(np.argmax(lengths))
        raise DataError(
            f"{int(long.sum()):,} documents are longer than max_length {max_length}; "
            f"the longest, document {int(chosen[worst]) + 1}, has {int(lengths[worst]):,} tokens.",
            where=name,
            remedy="Raise data.max_length, or set data.truncation: cut.",
        )
    if truncation == "split":
        return _split(documents, chosen, max_length)
    for index in np.flatnonzero(long):
        start = int(offsets[index])
        labels[index] = np.count_nonzero(documents.taught[start : start + max_length])
    taught = labels > 0
    kept = np.minimum(lengths, max_length)
    pieces = Pieces(offsets[taught], kept[taught])
    return Fitted(
        pieces=pieces,
        label_tokens=int(labels.sum()),
        ends=int((documents.ends[chosen] & ~long).sum()),
        split_documents=0,
        cut_documents=int((long & taught).sum()),
        cut_tokens=int((lengths - kept)[taught].sum()),
        untaught_documents=int((~taught).sum()),
    )


def _split(documents: Documents, chosen: Ints, max_length: int) -> Fitted:
    """Every token of the documents; in each piece, the first has nothing that it could be predicted from."""
    lengths = documents.lengths[chosen].astype(np.int64)
    counts = -(-lengths // max_length)
    which = np.repeat(np.arange(len(lengths)), counts)
    place = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = place * max_length
    pieces = Pieces(documents.offsets[chosen][which] + start, np.minimum(lengths[which] - start, max_length))
    further = pieces.offset[place > 0]
    lost = int(np.count_nonzero(documents.taught[further])) if len(further) else 0
    label_tokens = int(documents.label_tokens[chosen].sum(dtype=np.int64)) - lost
    # an end token that is alone in its piece has nothing before it to be learnt from
    alone = (pieces.length == 1) & (place == counts[which] - 1)
    ends = int(documents.ends[chosen].sum()) - int((alone & documents.ends[chosen][which]).sum())
    return Fitted(
        pieces=pieces,
        label_tokens=label_tokens,
        ends=ends,
        split_documents=int((counts > 1).sum()),
        cut_documents=0,
        cut_tokens=0,
        untaught_documents=0,
    )


class Sequences:
    """Rows to train on, each made of one or several pieces when it is asked for."""

    def __init__(
        self, documents: Sequence[Documents], source: Ints, pieces: Pieces, bounds: Ints, *, packed: bool
    ) -> None:
        self._documents = documents
        self._source = source
        """[pieces]: which of the documents each is from."""

        self._pieces = pieces
        self._bounds = bounds
        """[sequences + 1]: sequence i is made of the pieces from bounds[i] to bounds[i + 1]."""

        self._packed = packed
        self.lengths: Ints = np.add.reduceat(pieces.length, bounds[:-1]) if len(bounds) > 1 else np.empty(0, np.int64)
        """[sequences]: tokens of each."""

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> Features:
        """`input_ids`, `labels` and, if packed, `position_ids` that begin again with each document; all [tokens].

        `number` [1] is the index itself: a batch can be traced to its rows.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        ids: list[npt.NDArray[np.int32]] = []
        labels: list[npt.NDArray[np.int32]] = []
        for piece in range(int(self._bounds[index]), int(self._bounds[index + 1])):
            documents = self._documents[self._source[piece]]
            start, length = int(self._pieces.offset[piece]), int(self._pieces.length[piece])
            ids.append(documents.input_ids[start : start + length])
            labels.append(np.where(documents.taught[start : start + length], ids[-1], np.int32(NO_LABEL)))
            labels[-1][0] = NO_LABEL
        row: Features = {
            "input_ids": np.concatenate(ids),
            "labels": np.concatenate(labels),
            "number": np.array([index], np.int32),
        }
        if self._packed:
            row["position_ids"] = np.concatenate([np.arange(len(piece), dtype=np.int32) for piece in ids])
        return row

    def documents_in(self, index: int) -> list[tuple[int, int]]:
        """The source and the number in it of each document that a sequence holds, or holds a piece of."""
        found = []
        for piece in range(int(self._bounds[index]), int(self._bounds[index + 1])):
            source = int(self._source[piece])
            offsets = self._documents[source].offsets
            found.append((source, int(np.searchsorted(offsets, self._pieces.offset[piece], side="right")) - 1))
        return found


def packs(data: Data, formats: Iterable[str]) -> bool:
    """Whether documents share sequences: as the recipe says, or else if they are all plain text."""
    return all(FORMATS[name].is_plain_text for name in formats) if data.packing is None else data.packing


def truncation_of(part: Part, data: Data) -> Truncation:
    """What happens to documents of a part that are longer than a sequence."""
    return data.truncation or ("split" if part.corpus.form.is_plain_text else "cut")


def arrange(parts: Sequence[Part], data: Data, *, packed: bool) -> tuple[Sequences, Fitted]:
    """The documents of a data set as its sequences.

    Raises:
        DataError: one is longer than `max_length`, and `truncation` is `error`.
    """
    max_length = min(data.max_length, _LONGEST)
    fitted = [
        fit(
            part.corpus.documents,
            part.chosen,
            max_length,
            truncation_of(part, data),
            name=part.corpus.name,
        )
        for part in parts
    ]
    pieces = Pieces.join([each.pieces for each in fitted])
    source = np.repeat(np.arange(len(parts)), [len(each.pieces.length) for each in fitted])
    bounds = np.arange(len(source) + 1)
    if packed:
        order, ends = array("q"), array("q", [0])  # there may be millions
        for members in pack(pieces.length, max_length):
            order.extend(members)
            ends.append(len(order))
        pieces, source = Pieces(pieces.offset[order], pieces.length[order]), source[order]
        bounds = np.asarray(ends)
    documents = [part.corpus.documents for part in parts]
    return Sequences(documents, source, pieces, bounds, packed=packed), Fitted.total(fitted, pieces)
