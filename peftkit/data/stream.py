"""Training data that is read and tokenised while it is trained on, for what is larger than the disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from peftkit.data.corpus import Corpus, Part, Reading, check_rows, encoder_of, shape_of
from peftkit.data.documents import Documents
from peftkit.data.encode import Encoder, encode
from peftkit.data.packing import WINDOW
from peftkit.data.sequences import Features, arrange, packs
from peftkit.data.sources import Rows, open_rows
from peftkit.recipe.schema import Data

__all__ = ["Stream"]

_TOKENS = 1 << 22  # of a window at the most: what is in memory, at five bytes a token


class Stream(IterableDataset[Features]):
    """Sequences of one window after the other, each window packed and shuffled for itself."""

    def __init__(self, data: Data, tokenizer: Any) -> None:
        self._data = data
        self._epoch = 0
        self._sources: list[tuple[Rows, Encoder, Reading]] = []
        for source in data.train_sources:
            own = data.of(source)
            rows = open_rows(source, own, "data.train", streaming=True)
            shape, why = shape_of(rows, own, "data.train")
            self._sources.append((rows, encoder_of(shape, own, tokenizer), Reading(shape.format, why)))
        self.packed = packs(data, {reading.format for _, _, reading in self._sources})
        self.readings: list[Reading] = []
        """What became of the rows so far, for each source that has been begun in this epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Shuffle in another way; the Trainer calls it at the start of each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Features]:
        rng = np.random.default_rng((self._data.seed, self._epoch))
        for window in self.windows():
            sequences = arrange([Part.whole(window)], self._data, packed=self.packed)[0]
            yield from (sequences[int(index)] for index in rng.permutation(len(sequences)))

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
                    yield Corpus(rows.name, rows.identity, replace(reading), Documents.join(held))
                    held = []
            if sum(map(len, held)):
                yield Corpus(rows.name, rows.identity, replace(reading), Documents.join(held))

    def identities(self) -> list[dict[str, Any]]:
        """What is known of each source without reading it whole."""
        return [rows.identity for rows, _, _ in self._sources]

    def record(self) -> dict[str, int]:
        """Rows read in the newest epoch, and those that were left out."""
        return {
            "rows": sum(reading.rows for reading in self.readings),
            "empty_rows": sum(reading.empty for reading in self.readings),
            "bad_rows": sum(reading.bad for reading in self.readings),
        }
