"""A few of a run's own sequences, to compare what models say to them."""

from __future__ import annotations

import numpy as np

from peftkit.adapters.sample import Sample
from peftkit.data.documents import NO_LABEL
from peftkit.data.prepare import RunData
from peftkit.data.sequences import Features

__all__ = ["SAMPLE_TOKENS", "pick_sample"]

_ROWS, SAMPLE_TOKENS = 8, 64
"""512 tokens: enough to see a wrong weight, and 100 MB of GPT-2's logits."""


def pick_sample(data: RunData) -> Sample:
    """Rows spread over the validation data, or over the training data where there is no other.

    Of each, the first document up to 64 tokens, so that a model sees it as it would alone.
    """
    prepared, source = (data.validation, "validation data") if data.validation else (data.train, "training data")
    sequences = prepared.sequences
    numbers = np.linspace(0, len(sequences) - 1, min(_ROWS, len(sequences))).astype(int)
    rows = [_first_document(sequences[int(number)]) for number in numbers]
    taught = [row for row in rows if any(label != NO_LABEL for label in row[1])]
    return Sample.of(source, taught or rows)


def _first_document(row: Features) -> tuple[list[int], list[int]]:
    positions = row.get("position_ids")
    begins = np.flatnonzero(positions == 0) if positions is not None else np.zeros(1)
    end = min(int(begins[1]) if len(begins) > 1 else len(row["input_ids"]), SAMPLE_TOKENS)
    return row["input_ids"][:end].tolist(), row["labels"][:end].tolist()
