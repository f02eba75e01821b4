"""Batches for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from peftkit.data.formats.format import NO_LABEL
from peftkit.data.sequences import Features

__all__ = ["INPUTS", "ON_HOST", "Batch", "Collator"]

INPUTS = ("input_ids", "labels", "position_ids")
"""What of a batch has a value for each token: rows of it are a batch again."""

ON_HOST = ("num_tokens", "numbers", "packed")
"""What of a batch is no tensor: loaders and Trainer leave it on the host, where it is read. Models do not see it."""

Batch: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right, to the longest of the batch.

    There is no attention mask: no token sees what comes after it, padding has no labels, and a mask would let packed
    documents see each other.
    """

    pad_token_id: int
    flat: bool = False
    """Put packed rows one after the other into a single one, without padding, for attention of variable lengths."""

    bounds: bool = False
    """Add where the documents of packed rows begin: the program would wait for a GPU that is to find them."""

    def __call__(self, features: Sequence[Features]) -> Batch:
        """The batch: `input_ids`, `labels` and, if packed, `position_ids` [rows, tokens]; `num_tokens` [rows].

        `label_indices` [labels] are the places of the tokens in the loss among all rows * tokens of the batch, which a
        GPU could otherwise not find without the host waiting for their number. Where the rows have a number, `numbers`
        [rows] are these. `packed` says whether a row holds several documents.

        In a packed row the padding is a document of its own, with positions from 0. `cu_seq_lens_q`, as Transformers
        calls it, has the bounds of documents where they are wanted: the place of each one's first token when the rows
        follow each other, and the number of all tokens, [documents + 1], int32.
        """
        lengths = [len(row["input_ids"]) for row in features]
        numbers = [row["number"] for row in features if "number" in row]
        packed = "position_ids" in features[0]
        if self.flat and packed:
            features = [{name: np.concatenate([row[name] for row in features]) for name in features[0]}]
        batch: Batch = {
            "input_ids": self._padded(features, "input_ids", self.pad_token_id),
            "labels": self._padded(features, "labels", NO_LABEL),
            "num_tokens": np.array(lengths),
            "packed": False,
        }
        batch["label_indices"] = torch.from_numpy(_label_indices(batch["labels"].numpy()))
        if numbers:
            batch["numbers"] = np.concatenate(numbers)
        if packed:
            batch["position_ids"] = self._padded(features, "position_ids", 0)
            for row, values in enumerate(features):
                padding = batch["position_ids"][row, len(values["position_ids"]) :]
                padding.copy_(torch.arange(len(padding)))
            batch["packed"] = bool((batch["position_ids"][:, 1:] == 0).any())
            if self.bounds:
                positions = batch["position_ids"].flatten()
                first = (positions == 0).nonzero().flatten()  # all documents, and so all rows, begin at 0
                batch["cu_seq_lens_q"] = torch.cat([first, torch.tensor([len(positions)])]).int()
        return batch

    @staticmethod
    def _padded(features: Sequence[Features], name: str, filling: int) -> torch.Tensor:
        longest = max(len(row[name]) for row in features)
        padded = np.full((len(features), longest), filling, dtype=np.int64)
        for index, row in enumerate(features):
            padded[index, : len(row[name])] = row[name]
        return torch.from_numpy(padded)


def _label_indices(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The places of labels [rows, tokens] in the flattened batch, without the first of a row: nothing predicts that."""
    labelled = labels != NO_LABEL
    labelled[:, 0] = False
    return np.flatnonzero(labelled)
