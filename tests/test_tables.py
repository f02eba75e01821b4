"""Tables fit the width that they are given, and lose nothing."""

from __future__ import annotations

import pytest

from peftkit.tables import lay_out

COLUMNS = ["recipe", "loss", "what it is for"]
ROWS = [["quickstart", "0.5", "turn facts into a sentence"], ["tiny", "12.25", "make the embedded base again"]]


def lines(width: int, rows: list[list[str]] = ROWS, *, numeric: bool = False) -> list[str]:
    return [line for row in lay_out(COLUMNS, rows, width, numeric=numeric) for line in row]


def letters(texts: list[str]) -> list[str]:
    return sorted("".join("".join(texts).split()))


def test_each_row_is_a_line_where_there_is_room() -> None:
    assert lines(80) == [
        "recipe      loss   what it is for",
        "quickstart  0.5    turn facts into a sentence",
        "tiny        12.25  make the embedded base again",
    ]


def test_numbers_are_flush_right() -> None:
    assert [line[:17] for line in lines(80, numeric=True)] == [
        "recipe       loss",
        "quickstart    0.5",
        "tiny        12.25",
    ]


def test_a_long_cell_continues_below_itself_between_words() -> None:
    assert lines(36)[1:] == [
        "quickstart  0.5    turn facts into a",
        "                   sentence",
        "tiny        12.25  make the embedded",
        "                   base again",
    ]


@pytest.mark.parametrize("width", [80, 40, 30, 24, 20])
def test_no_line_is_longer_than_the_width_and_no_word_is_lost(width: int) -> None:
    found = lines(width)

    assert max(map(len, found)) <= width
    assert letters(found) == letters([*COLUMNS, *(cell for row in ROWS for cell in row)])


def test_a_word_that_is_longer_than_its_column_is_folded() -> None:
    found = lines(30, [["x", "1", "https://example.org/a/b/c"]])

    assert [line[14:] for line in found[1:]] == ["https://example.", "org/a/b/c"]


def test_wide_characters_count_twice_and_combining_ones_not_at_all() -> None:
    wide, combined = lines(80, [["日本", "1", "a"], ["e\u0301", "2", "b"]])[1:]

    assert wide == "日本    1     a"
    assert combined == "e\u0301       2     b"


def test_a_line_break_in_a_cell_starts_a_line_of_its_column() -> None:
    assert lines(80, [["x", "1", "one\ntwo"]])[1:] == ["x       1     one", "              two"]


def test_a_table_without_rows_is_its_heading() -> None:
    assert lines(80, []) == ["recipe  loss  what it is for"]
