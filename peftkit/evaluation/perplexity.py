"""The loss of a model on each document, whole, in windows where it is longer than the model sees."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Dataset

from peftkit.data.collator import Collator
from peftkit.data.formats.format import NO_LABEL
from peftkit.data.prepare import Prepared
from peftkit.data.sequences import Features, truncation_of
from peftkit.models.loss import Loss, row_losses
from peftkit.planning.decisions import ChosenPrecision
from peftkit.recipe.schema import Data

__all__ = [
    "Difference", "DocumentLosses", "Window", "WindowedDocuments", "difference", "measure_documents", "windows_of",
]  # fmt: skip

_DRAWS = 10_000
_DRAWN_AT_ONCE = 1 << 22  # numbers of documents


@dataclass(frozen=True)
class DocumentLosses:
    """The loss of each document that has a token in the loss."""

    nats: npt.NDArray[np.float64]  # [documents]: negative log-likelihood of the tokens that count, summed.
    tokens: npt.NDArray[np.int64]  # [documents]: how many these are.

    @property
    def loss(self) -> Loss:
        """All documents together."""
        return Loss(float(self.nats.sum()), int(self.tokens.sum()), len(self.nats))

    @property
    def standard_error(self) -> float | None:
        """Of the mean loss in nats a token, over documents as drawn from many; None where there is one document.

        The mean is a ratio of two sums over documents, and its error that of a ratio (Cochran 1977, section 6.3).
        """
        count = len(self.nats)
        if count < 2:
            return None
        residuals = self.nats - self.loss.mean * self.tokens
        return math.sqrt(count / (count - 1) * float((residuals**2).sum())) / self.loss.tokens


@dataclass(frozen=True)
class Difference:
    """How much more nats a token one model needs than another, on the same documents."""

    nats: float
    low: float
    high: float  # the 95% confidence interval, over documents

    @property
    def is_noise(self) -> bool:
        """Whether it could be none."""
        return self.low <= 0 <= self.high


def measure_documents(
    model: Any,
    prepared: Prepared,
    data: Data,
    pad_token_id: int,
    batch_size: int,
    precision: ChosenPrecision,
    stride: int | None = None,
) -> DocumentLosses:
    """The loss of each document, in windows of `data.max_length` tokens.

    The batch size changes memory and speed, never the result. Without a stride, documents are laid out as in training.
    """
    windows = WindowedDocuments(prepared, data, stride)
    batches: Any = DataLoader(windows, batch_size=batch_size, collate_fn=Collator(pad_token_id))
    found = list(row_losses(model, batches, precision))
    nats, tokens = (np.concatenate([part[index].numpy() for part in found]) for index in (0, 1))
    total = np.bincount(windows.documents, nats, windows.count).astype(np.float64)
    taught = np.bincount(windows.documents, tokens, windows.count).astype(np.int64)
    return DocumentLosses(total[taught > 0], taught[taught > 0])


def difference(ours: DocumentLosses, theirs: DocumentLosses, seed: int = 0) -> Difference:
    """How much more loss `ours` is than `theirs`, with a bootstrap interval over documents (Efron 1979).

    Both must be of the same documents, so that what these have in common is not taken for chance.
    """
    gap = ours.nats - theirs.nats
    count = len(gap)
    rng = np.random.default_rng(seed)
    means: list[npt.NDArray[np.float64]] = []
    at_once = max(1, _DRAWN_AT_ONCE // count)
    for done in range(0, _DRAWS, at_once):
        drawn = rng.integers(count, size=(min(at_once, _DRAWS - done), count))
        means.append(gap[drawn].sum(1) / ours.tokens[drawn].sum(1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Difference(float(gap.sum() / ours.tokens.sum()), float(low), float(high))


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
