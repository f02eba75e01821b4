"""Packing puts every document somewhere, once, and wastes little."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.data.packing import WINDOW, pack

LENGTHS = st.lists(st.integers(1, 64), max_size=60)


def packed(lengths: list[int], max_length: int, window: int = WINDOW) -> list[list[int]]:
    return list(pack(np.array(lengths, np.int64), max_length, window))


@given(lengths=LENGTHS, window=st.integers(1, 70))
def test_every_document_is_packed_once_and_no_sequence_overflows(lengths: list[int], window: int) -> None:
    sequences = packed(lengths, 64, window)

    assert sorted(index for sequence in sequences for index in sequence) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in sequence) <= 64 for sequence in sequences)


@given(lengths=LENGTHS, window=st.integers(1, 20))
def test_documents_of_two_windows_never_share_a_sequence(lengths: list[int], window: int) -> None:
    for sequence in packed(lengths, 64, window):
        assert len({index // window for index in sequence}) == 1


@given(lengths=LENGTHS)
def test_no_more_sequences_are_used_than_the_bound_for_best_fit_decreasing(lengths: list[int]) -> None:
    fewest = -(-sum(lengths) // 64)

    assert len(packed(lengths, 64)) <= max(2 * fewest - 1, fewest)


def test_a_document_goes_into_the_fullest_sequence_that_has_room() -> None:
    assert packed([5, 7, 3, 4], 10) == [[0, 3], [1, 2]]


def test_a_document_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="a document has 11 tokens, more than 10"):
        packed([3, 11], 10)
