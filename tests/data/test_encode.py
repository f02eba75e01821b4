"""Documents become token ids that lose nothing and end where the text ends."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftkit.data.formats import Example
from peftkit.data.tokenise import Document, fit, tokenise


def test_a_document_ends_in_the_end_token_and_its_first_token_is_given(tokenizer: Any) -> None:
    (document,) = tokenise([Example(None, "hello")], tokenizer)

    assert tokenizer.decode(document.input_ids[:-1]) == "hello"
    assert document.input_ids[-1] == tokenizer.eos_token_id
    assert document.given == 1


def test_what_is_given_is_exactly_the_prompt(tokenizer: Any) -> None:
    (document,) = tokenise([Example("ask ", "answer")], tokenizer)

    assert tokenizer.decode(document.input_ids[: document.given]) == "ask "


def test_cutting_keeps_the_first_tokens() -> None:
    assert fit(Document(list(range(10)), 2), 4, "cut") == [Document([0, 1, 2, 3], 2)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(st.text(), max_size=5), max_length=st.integers(2, 20))
def test_splitting_loses_no_token(texts: list[str], max_length: int, tokenizer: Any) -> None:
    for document in tokenise([Example(None, text) for text in texts], tokenizer):
        pieces = fit(document, max_length, "split")

        assert [token for piece in pieces for token in piece.input_ids] == document.input_ids
        assert max(len(piece.input_ids) for piece in pieces) <= max_length
