"""What is held out stands nowhere else, and what is mixed has the shares that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from peftkit.data.corpus import Corpus, Part, Reading
from peftkit.data.documents import Documents
from peftkit.data.mixing import hold_out, mix
from peftkit.errors import FieldError


def part_of(digests: list[int]) -> Part:
    count = len(digests)
    documents = Documents(
        input_ids=np.arange(2 * count, dtype=np.int32),
        taught=np.tile(np.array([False, True]), count),
        lengths=np.full(count, 2, np.int32),
        label_tokens=np.ones(count, np.int32),
        ends=np.ones(count, np.bool_),
        digests=np.array(digests, np.uint64),
    )
    return Part.whole(Corpus("rows", {}, Reading("text", "of a test"), documents, str))


def digests_of(parts: list[Part]) -> list[int]:
    return [int(digest) for part in parts for digest in part.corpus.documents.digests[part.chosen]]


@given(digests=st.lists(st.integers(0, 30), min_size=4, max_size=60), share=st.floats(0.1, 0.9), seed=st.integers(0, 9))
def test_every_document_is_on_one_side_and_equal_ones_on_the_same(digests: list[int], share: float, seed: int) -> None:
    half = len(digests) // 2
    try:
        train, held_out = hold_out([part_of(digests[:half]), part_of(digests[half:])], share, seed)
    except FieldError:
        assume(False)

    assert sorted(digests_of(train) + digests_of(held_out)) == sorted(digests)
    assert not set(digests_of(train)) & set(digests_of(held_out))
    assert len(digests_of(held_out)) <= max(1, round(share * len(digests)))


def test_a_share_of_different_documents_is_exact_and_drawn_by_the_seed() -> None:
    parts = [part_of(list(range(1000)))]
    first, again, other = (digests_of(hold_out(parts, 0.05, seed)[1]) for seed in (1, 1, 2))

    assert len(first) == 50
    assert first == again != other


def test_a_share_that_holds_nothing_out_is_an_error() -> None:
    with pytest.raises(FieldError, match=r"data\.validation: 0\.5 of 4 documents, 1 of them different, cannot be held"):
        hold_out([part_of([7, 7, 7, 7])], 0.5, 42)


def test_without_weights_every_document_comes_once() -> None:
    assert digests_of(mix([part_of([1, 2]), part_of([3])], [None, None], 42)) == [1, 2, 3]


def test_weights_give_shares_of_all_documents_whatever_the_sizes_of_the_sources() -> None:
    small, large = part_of(list(range(10))), part_of(list(range(100, 190)))

    mixed = mix([small, large], [1, 1], 42)

    assert [len(part.chosen) for part in mixed] == [50, 50]
    assert sorted(digests_of(mixed[:1])) == sorted(list(range(10)) * 5)
    assert len(set(digests_of(mixed[1:]))) == 50


def test_what_is_drawn_for_a_share_is_drawn_by_the_seed() -> None:
    parts = [part_of(list(range(50))), part_of(list(range(100, 150)))]
    first, again, other = (digests_of(mix(parts, [3, 1], seed)) for seed in (1, 1, 2))

    assert first == again != other
