"""A draft's text is YAML that holds its values, with a reason at each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.recipe.document import parse_document
from peftkit.recipe.draft import Reasoned, draft_text


@pytest.mark.parametrize(
    "value",
    ["train.jsonl", "builtin:tiny-gpt2", "../a b/rows: 1.csv", "true", "Null", "7", "1e-4", "#x", "-", "é", "a#b", "a:",
     "no", "~", "[a]", "x\ny", "x\x85y", "./a", 'say "hi"', 3e-4, 16, 0.05, True],
)  # fmt: skip
def test_a_value_is_read_as_what_it_is(value: str | float | bool) -> None:
    text = draft_text({"section": {"field": Reasoned(value, "a reason")}}, "heading")

    assert parse_document(text, "draft").values == {"section": {"field": value}}


@given(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1))
def test_any_text_is_read_as_it_is(value: str) -> None:
    text = draft_text({"field": Reasoned(value)}, "heading")

    assert parse_document(text, "draft").values == {"field": value}


def test_a_reason_stands_beside_its_value_or_above_it_where_it_is_long() -> None:
    text = draft_text({"a": Reasoned(1, "short"), "section": {"b": Reasoned(2, "long " * 40)}}, "heading")

    lines = text.splitlines()
    assert lines[:4] == ["# heading", "a: 1 # short", "", "section:"]
    assert lines[4].startswith("  # long long")
    assert lines[-1] == "  b: 2"
    assert max(map(len, lines)) <= 120
