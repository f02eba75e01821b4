"""Perplexity on prepared data, document by document."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader

from peftkit.data.collator import Collator
from peftkit.data.prepare import Prepared
from peftkit.evaluation.windows import WindowedDocuments
from peftkit.models.loss import Loss, row_losses
from peftkit.planning.precision import ChosenPrecision
from peftkit.recipe.schema import Data

__all__ = ["Difference", "DocumentLosses", "difference", "measure_documents"]

_DRAWS = 10_000
_DRAWN_AT_ONCE = 1 << 22  # numbers of documents


@dataclass(frozen=True)
class DocumentLosses:
    """The loss of each document that has a taught token."""

    nats: npt.NDArray[np.float64]
    """[documents]: negative log-likelihood of the tokens that count, summed."""

    tokens: npt.NDArray[np.int64]
    """[documents]: how many these are."""

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
    high: float
    """The interval that holds 95 of 100 of what other documents of the kind would have shown."""

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
