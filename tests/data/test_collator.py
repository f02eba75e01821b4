"""Batches are padded on the right, and padding teaches nothing."""

from __future__ import annotations

import numpy as np
import torch
from accelerate.utils import send_to_device

from peftkit.data.collator import Collator


def row(**columns: list[int]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int32]]]:
    return {name: np.array(values, dtype=np.int32) for name, values in columns.items()}


def test_rows_are_padded_to_the_longest_without_a_mask() -> None:
    batch = Collator(9)([row(input_ids=[1, 2, 3], labels=[-100, 2, 3]), row(input_ids=[4], labels=[-100])])

    assert set(batch) == {"input_ids", "labels", "label_indices", "num_tokens", "packed"}
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


def test_label_indices_are_the_places_of_what_is_in_the_loss_in_the_flattened_batch() -> None:
    long = row(input_ids=[1, 2, 3], labels=[-100, 2, 3])
    short = row(input_ids=[4, 5], labels=[4, 5])  # nothing predicts the first of a row

    batch = Collator(0)([long, short])

    assert batch["label_indices"].tolist() == [1, 2, 4]
    assert batch["labels"].flatten()[batch["label_indices"]].tolist() == [2, 3, 5]


def test_rows_without_labels_have_no_label_indices() -> None:
    assert Collator(0)([row(input_ids=[1, 2], labels=[-100, -100])])["label_indices"].shape == (0,)


def test_a_batch_is_packed_where_a_row_holds_several_documents() -> None:
    whole = row(input_ids=[1, 2], labels=[-100, 2], position_ids=[0, 1])
    two = row(input_ids=[1, 2], labels=[-100, -100], position_ids=[0, 0])
    shorter = row(input_ids=[1], labels=[-100], position_ids=[0])  # its padding is another document

    assert [Collator(0)(rows)["packed"] for rows in ([whole, whole], [whole, two], [whole, shorter])] == [
        False,
        True,
        True,
    ]


def test_what_the_host_reads_stays_there_when_a_batch_is_sent_to_a_device() -> None:
    batch = Collator(0)([row(input_ids=[1, 2], labels=[-100, 2], number=[7])])

    sent = send_to_device(batch, "meta")

    assert {name for name, values in sent.items() if getattr(values, "is_meta", False)} == {
        "input_ids",
        "labels",
        "label_indices",
    }
    assert (sent["num_tokens"].tolist(), sent["numbers"].tolist(), sent["packed"]) == ([2], [7], False)
