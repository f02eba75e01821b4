"""Long documents as windows that overlap, so that a token has something before it that it is predicted from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from peftkit.data.documents import NO_LABEL
from peftkit.data.prepare import Prepared
from peftkit.data.sequences import Features, truncation_of
from peftkit.recipe.schema import Data

__all__ = ["Window", "WindowedDocuments", "windows_of"]


@dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` of a document, of which those from `scored` on count."""

    begin: int
    end: int
    scored: int


def windows_of(length: int, max_length: int, stride: int, *, whole: bool = True) -> Iterator[Window]:
    """The windows of a document of `length` tokens; without `whole`, the first one alone.

    Each begins `stride` tokens after the one before, and scores what that did not reach. Where `stride` is
    `max_length`, windows stand side by side, and the first token of each but the first is predicted from nothing, so
    that it is not counted.
    """
    begin = scored = 0
    while True:
        end = min(begin + max_length, length)
        yield Window(begin, end, scored)
        if end == length or not whole:
            return
        begin, scored = begin + stride, end


class WindowedDocuments(Dataset[Features]):
    """Every window of every document of a data set, the longest first."""

    def __init__(self, prepared: Prepared, data: Data, stride: int | None) -> None:
        """Without a stride, documents are laid out as in training: side by side, or cut after the first window."""
        self._parts = prepared.parts
        self.count = 0
        """Documents."""

        found: list[tuple[int, int, int, Window]] = []
        for index, part in enumerate(prepared.parts):
            whole = stride is not None or truncation_of(part, data) == "split"
            for chosen in part.chosen:
                length = int(part.corpus.documents.lengths[chosen])
                windows = windows_of(length, data.max_length, stride or data.max_length, whole=whole)
                found.extend((index, int(chosen), self.count, window) for window in windows)
                self.count += 1
        self._windows = sorted(found, key=lambda each: each[3].begin - each[3].end)
        self.documents = np.array([document for _, _, document, _ in self._windows])
        """[windows]: the document of each."""

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, number: int) -> Features:
        part, chosen, _, window = self._windows[number]
        documents = self._parts[part].corpus.documents
        begin = int(documents.offsets[chosen]) + window.begin
        place = slice(begin, begin + window.end - window.begin)
        ids = np.asarray(documents.input_ids[place])
        counts = np.asarray(documents.taught[place]) & (np.arange(window.begin, window.end) >= window.scored)
        return {"input_ids": ids, "labels": np.where(counts, ids, NO_LABEL).astype(np.int32)}
