"""Batches are padded on the right, and padding teaches nothing."""

from __future__ import annotations

import numpy as np
import torch

from peftkit.data.collator import Collator


def row(**columns: list[int]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int32]]]:
    return {name: np.array(values, dtype=np.int32) for name, values in columns.items()}


def test_rows_are_padded_to_the_longest_without_a_mask() -> None:
    batch = Collator(9)([row(input_ids=[1, 2, 3], labels=[-100, 2, 3]), row(input_ids=[4], labels=[-100])])

    assert set(batch) == {"input_ids", "labels", "num_tokens"}
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, -100, -100]]
    assert batch["num_tokens"].tolist() == [3, 1]


def test_the_padding_of_a_packed_row_is_a_document_of_its_own() -> None:
    long = row(input_ids=[1, 2, 3, 4, 5], labels=[-100, 2, -100, 4, 5], position_ids=[0, 1, 0, 1, 2])
    short = row(input_ids=[1, 2], labels=[-100, 2], position_ids=[0, 1])

    assert Collator(0)([long, short])["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 2]]


def test_bounds_of_packed_documents_are_given_where_they_are_wanted() -> None:
    long = row(input_ids=[1, 2, 3, 4, 5], labels=[-100, 2, -100, 4, 5], position_ids=[0, 1, 0, 1, 2])
    short = row(input_ids=[1, 2], labels=[-100, 2], position_ids=[0, 1])
    apart = row(input_ids=[1], labels=[-100])

    bounds = Collator(0, bounds=True)([long, short])["cu_seq_lens_q"]

    assert bounds.tolist() == [0, 2, 5, 7, 10]  # the last one is padding
    assert bounds.dtype == torch.int32
    assert Collator(0, bounds=True, flat=True)([long, short])["cu_seq_lens_q"].tolist() == [0, 2, 5, 7]
    assert "cu_seq_lens_q" not in Collator(0)([long, short])
    assert "cu_seq_lens_q" not in Collator(0, bounds=True)([apart])


def test_flat_rows_stand_one_after_the_other_without_padding() -> None:
    long = row(input_ids=[1, 2, 3], labels=[-100, 2, 3], position_ids=[0, 1, 2])
    short = row(input_ids=[4, 5], labels=[-100, 5], position_ids=[0, 1])
    apart = [row(input_ids=[1], labels=[-100]), row(input_ids=[4, 5], labels=[-100, 5])]

    batch = Collator(0, flat=True)([long, short])

    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["num_tokens"].tolist() == [3, 2]
    assert Collator(0, flat=True)(apart)["input_ids"].shape == (2, 2)  # rows that are not packed stay rows
