"""Rows become documents that lose nothing and end where the text ends, in one process or in several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftkit.data import documents as module
from peftkit.data.documents import Documents, Encoded, Encoder, encode
from peftkit.data.files import Row
from peftkit.data.formats import FORMATS
from peftkit.data.formats.format import Writing
from peftkit.data.formats.spans import ENDED
from peftkit.data.sources import Layout

TEXT, COMPLETION, TOKENS = (next(Layout.all_of(FORMATS[name])) for name in ("text", "completion", "tokens"))


def rows_of(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"rows:{number}", value) for number, value in enumerate(values, start=1)]


def text_rows(count: int) -> list[Row]:
    return rows_of(*({"text": f"text number {number} of many"} for number in range(count)))


def ids_of(documents: Documents, number: int) -> list[int]:
    start = int(documents.offsets[number])
    return [int(token) for token in documents.input_ids[start : start + int(documents.lengths[number])]]


def taught_of(documents: Documents, number: int) -> list[bool]:
    start = int(documents.offsets[number])
    return [bool(label) for label in documents.taught[start : start + int(documents.lengths[number])]]


def test_a_text_ends_in_the_end_token_and_its_first_token_is_not_taught(tokenizer: Any) -> None:
    documents = Encoder(tokenizer, TEXT, Writing())(rows_of({"text": "hello"})).documents

    assert tokenizer.decode(ids_of(documents, 0)) == "hello<|end|>"
    assert taught_of(documents, 0) == [False, True, True, True, True, True]
    assert (documents.label_tokens.tolist(), documents.ends.tolist()) == ([5], [True])


def test_what_is_given_is_exactly_the_prompt(tokenizer: Any) -> None:
    documents = Encoder(tokenizer, COMPLETION, Writing())(rows_of({"prompt": "ask:", "completion": "answer"})).documents

    assert tokenizer.decode(np.array(ids_of(documents, 0))[~np.array(taught_of(documents, 0))]) == "ask:"


def test_bad_and_empty_rows_are_counted_in_order_and_the_others_kept(tokenizer: Any) -> None:
    rows = [*rows_of({"text": "a"}, {"text": " "}, {"text": 3}), Row("rows:4", {}, "is not JSON"), *text_rows(1)]

    found = Encoder(tokenizer, TEXT, Writing())(rows)

    assert (len(found.documents), found.rows, found.empty) == (2, 5, 1)
    assert found.bad == ["rows:3: text is a number, not text.", "rows:4: is not JSON."]


def test_ids_beyond_the_vocabulary_are_bad_and_named(tokenizer: Any) -> None:
    rows = rows_of({"input_ids": [5, 6]}, {"input_ids": [5, 258]}, {"input_ids": [-1, 5]})

    found = Encoder(tokenizer, TOKENS, Writing())(rows)

    assert found.bad == [
        "rows:2: token 258 is beyond the vocabulary of 258.",
        "rows:3: token -1 is beyond the vocabulary of 258.",
    ]
    assert ids_of(found.documents, 0) == [5, 6]
    assert found.documents.ends.tolist() == [False]


def test_equal_documents_have_equal_digests_and_others_have_others(tokenizer: Any) -> None:
    rows = rows_of({"text": "a b"}, {"text": "a c"}, {"text": "a b"})

    first, second, third = Encoder(tokenizer, TEXT, Writing())(rows).documents.digests

    assert first == third != second


def test_what_is_taught_tells_documents_of_the_same_text_apart(tokenizer: Any) -> None:
    rows = rows_of({"prompt": "ab", "completion": "cd"}, {"prompt": "abc", "completion": "d"})

    first, second = Encoder(tokenizer, COMPLETION, Writing())(rows).documents.digests

    assert first != second


def joined(batches: list[Encoded]) -> Documents:
    return Documents.join([batch.documents for batch in batches])


def test_several_processes_give_the_same_documents_in_the_same_order(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, rows = Encoder(tokenizer, TEXT, Writing()), text_rows(20_000)
    with_processes = list(encode(iter(rows), encoder))
    monkeypatch.setattr(module, "_BATCHES_INLINE", 1_000)
    alone = list(encode(iter(rows), encoder))

    assert len(with_processes) == len(alone) == 20
    for name in ("input_ids", "taught", "lengths", "digests"):
        assert np.array_equal(getattr(joined(with_processes), name), getattr(joined(alone), name))


def test_long_rows_come_in_smaller_batches(tokenizer: Any) -> None:
    rows = rows_of(*({"text": "x" * 300_000} for _ in range(8)))

    assert [batch.rows for batch in encode(rows, Encoder(tokenizer, TEXT, Writing()))] == [4, 4]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_no_character_is_lost(texts: list[str], tokenizer: Any) -> None:
    documents = Encoder(tokenizer, TEXT, Writing())(rows_of(*({"text": text} for text in texts))).documents

    expected = [f"{text}<|end|>" for text in texts if text.strip()]
    found = [tokenizer.decode(ids_of(documents, number)) for number in range(len(documents))]
    assert found == expected


def test_a_column_that_the_format_does_not_use_makes_the_row_bad_unless_it_says_nothing(tokenizer: Any) -> None:
    rows = rows_of(
        {"prompt": "a", "completion": "b", "id": 7, "Category": "x"},
        {"prompt": "a", "completion": "b", "weight": 0.5, "id": 8},
        {"prompt": "a", "completion": "b", "weight": None, "tools": []},
    )

    refused = Encoder(tokenizer, COMPLETION, Writing())(rows)
    ignored = Encoder(tokenizer, COMPLETION, Writing(), frozenset({"weight"}))(rows)

    (bad,) = refused.bad
    assert bad.endswith(
        ": has a column weight, which format completion does not use; use data.columns, or name it in "
        "data.ignore_columns."
    )
    assert refused.ignored == {"id": 1, "Category": 1}
    assert (len(ignored.documents), ignored.ignored) == (3, {"id": 2, "Category": 1, "weight": 1})


def test_what_is_noted_of_documents_is_counted(tokenizer: Any) -> None:
    rows = rows_of({"text": "one<|end|>"}, {"text": "two"})

    assert Encoder(tokenizer, TEXT, Writing())(rows).notes == {ENDED: 1}
