"""Fitting and packing account for every token."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.data.corpus import Corpus, Part, Reading
from peftkit.data.documents import Documents
from peftkit.data.formats.format import NO_LABEL
from peftkit.data.sequences import WINDOW, arrange, fit, pack
from peftkit.errors import DataError
from peftkit.recipe.schema import Data, Source

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=20)


def documents_of(lengths: list[int], given: int = 1) -> Documents:
    """Documents whose tokens are numbered through, and taught but for the first few."""
    total = sum(lengths)
    taught = np.concatenate([np.arange(length) >= given for length in lengths])
    counts = np.array([max(0, length - given) for length in lengths], np.int32)
    return Documents(
        input_ids=np.arange(total, dtype=np.int32),
        taught=taught,
        lengths=np.array(lengths, np.int32),
        label_tokens=counts,
        ends=counts > 0,
        digests=np.arange(len(lengths), dtype=np.uint64),
    )


def part_of(lengths: list[int], given: int = 1, format_: str = "text") -> Part:
    return Part.whole(Corpus("rows", {}, Reading(format_, "of a test"), documents_of(lengths, given), [0], None, str))


def data_of(max_length: int, truncation: Literal["split", "cut", "error"] | None = None) -> Data:
    return Data(train=Source(path="rows.txt"), max_length=max_length, truncation=truncation)


@given(lengths=LENGTHS, max_length=st.integers(2, 30), packed=st.booleans())
def test_splitting_and_packing_lose_no_token(lengths: list[int], max_length: int, packed: bool) -> None:
    sequences, fitted = arrange([part_of(lengths)], data_of(max_length), packed=packed)

    rows = [sequences[index] for index in range(len(sequences))]
    assert sorted(int(token) for row in rows for token in row["input_ids"]) == list(range(sum(lengths)))
    assert [len(row["input_ids"]) for row in rows] == sequences.lengths.tolist()
    assert max(sequences.lengths) <= max_length
    assert sum(int((row["labels"] != NO_LABEL).sum()) for row in rows) == fitted.label_tokens
    assert fitted.split_documents == sum(length > max_length for length in lengths)
    assert fitted.cut_tokens == 0


@given(lengths=LENGTHS, max_length=st.integers(2, 30), given_tokens=st.integers(1, 12), packed=st.booleans())
def test_what_cutting_loses_is_counted(lengths: list[int], max_length: int, given_tokens: int, packed: bool) -> None:
    part = part_of(lengths, given_tokens, "completion")
    sequences, fitted = arrange([part], data_of(max_length), packed=packed)

    rows = [sequences[index] for index in range(len(sequences))]
    kept = sum(len(row["input_ids"]) for row in rows)
    untaught = [length for length in lengths if min(length, max_length) <= given_tokens]
    assert fitted.untaught_documents == len(untaught)
    assert kept + fitted.cut_tokens + sum(untaught) == sum(lengths)
    assert sum(int((row["labels"] != NO_LABEL).sum()) for row in rows) == fitted.label_tokens
    assert fitted.ends == sum(given_tokens < length <= max_length for length in lengths)


def test_packed_documents_restart_their_positions_and_their_first_token_is_not_taught() -> None:
    sequences, _ = arrange([part_of([3, 4])], data_of(8), packed=True)
    row = sequences[0]

    assert row["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert row["labels"].tolist() == [NO_LABEL, 1, 2, NO_LABEL, 4, 5, 6]


def test_documents_of_several_sources_share_sequences() -> None:
    sequences, _ = arrange([part_of([3]), part_of([2])], data_of(8), packed=True)

    assert sequences[0]["input_ids"].tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(IndexError):
        sequences[1]


def test_truncation_error_names_the_longest_document_and_how_many_there_are() -> None:
    documents = documents_of([3, 12, 11])

    with pytest.raises(DataError, match="2 documents are longer than max_length 10; the longest, document 2, has 12"):
        fit(documents, np.arange(3), 10, "error", name="rows")


LENGTHS_TO_PACK = st.lists(st.integers(1, 64), max_size=60)


def packed(lengths: list[int], max_length: int, window: int = WINDOW) -> list[list[int]]:
    return list(pack(np.array(lengths, np.int64), max_length, window))


@given(lengths=LENGTHS_TO_PACK, window=st.integers(1, 70))
def test_every_document_is_packed_once_and_no_sequence_overflows(lengths: list[int], window: int) -> None:
    sequences = packed(lengths, 64, window)

    assert sorted(index for sequence in sequences for index in sequence) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in sequence) <= 64 for sequence in sequences)


@given(lengths=LENGTHS_TO_PACK, window=st.integers(1, 20))
def test_documents_of_two_windows_never_share_a_sequence(lengths: list[int], window: int) -> None:
    for sequence in packed(lengths, 64, window):
        assert len({index // window for index in sequence}) == 1


@given(lengths=LENGTHS_TO_PACK)
def test_no_more_sequences_are_used_than_the_bound_for_best_fit_decreasing(lengths: list[int]) -> None:
    fewest = -(-sum(lengths) // 64)

    assert len(packed(lengths, 64)) <= max(2 * fewest - 1, fewest)


def test_a_document_goes_into_the_fullest_sequence_that_has_room() -> None:
    assert packed([5, 7, 3, 4], 10) == [[0, 3], [1, 2]]


def test_a_document_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="a document has 11 tokens, more than 10"):
        packed([3, 11], 10)
