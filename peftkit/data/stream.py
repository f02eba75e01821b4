"""Training data that is read and tokenised while it is trained on, for what is larger than the disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from peftkit.data.corpus import Corpus, Part, Reading, check_rows, encoder_of
from peftkit.data.documents import Documents, Encoder, encode
from peftkit.data.sequences import WINDOW, Features, arrange, packs
from peftkit.data.sources import Rows, layout_of, open_rows
from peftkit.errors import DataError
from peftkit.recipe.schema import Data

__all__ = ["Stream"]

_TOKENS = 1 << 22  # of a window at the most: what is in memory, at five bytes a token


class Stream(IterableDataset[Features]):
    """Sequences of one window after the other, each window packed and shuffled for itself.

    It goes through the rows again and again without an end, so that a run of so many steps is one epoch of it, and a
    run that is resumed finds its place by counting batches.
    """

    def __init__(self, data: Data, tokenizer: Any) -> None:
        self._data = data
        self._sources: list[tuple[Rows, Encoder, Reading]] = []
        for source in data.train_sources:
            own = data.of(source)
            rows = open_rows(source, own, "data.train", streaming=True)
            layout, why = layout_of(rows, own, "data.train")
            self._sources.append((rows, encoder_of(layout, own, tokenizer), Reading(layout.form.name, why)))
        self.packed = packs(data, {reading.format for _, _, reading in self._sources})
        self.readings: list[Reading] = []
        """What became of the rows so far, for each source that has been begun in this pass."""

    def __iter__(self) -> Iterator[Features]:
        for number in count():
            empty = True
            for row in self.one_pass(number):
                empty = False
                yield row
            if empty:
                raise DataError(
                    "has nothing left to train on.", where=", ".join(rows.name for rows, *_ in self._sources)
                )

    def one_pass(self, number: int) -> Iterator[Features]:
        """Every sequence once, in an order of the pass's own."""
        rng = np.random.default_rng((self._data.seed, number))
        for window in self.windows():
            sequences = arrange([Part.whole(window)], self._data, packed=self.packed)[0]
            for index in rng.permutation(len(sequences)):
                row = sequences[int(index)]
                del row["number"]  # it is the window's, and says nothing once that is gone
                yield row

    def windows(self) -> Iterator[Corpus]:
        """The documents, a window of a source at a time.

        Raises:
            RowsError: a batch has rows that cannot be used, and these are not to be skipped.
        """
        self.readings = []
        for rows, encoder, recognised in self._sources:
            reading = replace(recognised, first_bad=[])
            self.readings.append(reading)
            held: list[Documents] = []
            for batch in encode(rows, encoder):
                reading.add(batch)
                check_rows(reading, self._data, rows.name)
                held.append(batch.documents)
                if sum(map(len, held)) >= WINDOW or sum(len(part.input_ids) for part in held) >= _TOKENS:
                    yield self._window(rows, reading, held, encoder)
                    held = []
            if sum(map(len, held)):
                yield self._window(rows, reading, held, encoder)

    @staticmethod
    def _window(rows: Rows, reading: Reading, held: list[Documents], encoder: Encoder) -> Corpus:
        documents, ends, time = Documents.join(held), encoder.end_tokens, encoder.writing.time
        return Corpus(rows.name, rows.identity, replace(reading), documents, ends, time, lambda _: rows.name)

    def identities(self) -> list[dict[str, Any]]:
        """What is known of each source without reading it whole."""
        return [rows.identity for rows, _, _ in self._sources]

    def record(self) -> dict[str, int]:
        """Rows read in the newest pass, and those that were left out."""
        return {
            "rows": sum(reading.rows for reading in self.readings),
            "empty_rows": sum(reading.empty for reading in self.readings),
            "bad_rows": sum(reading.bad for reading in self.readings),
        }
