"""Questions are read, and rows that are none are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftkit.data.choices import Question, read_questions
from peftkit.errors import DataError


def write(tmp_path: Path, *rows: Any) -> Path:
    place = tmp_path / "questions.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place


def test_an_answer_is_a_number_or_one_of_the_texts(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "choices": ["b", "c"], "answer": answer} for answer in (1, "c")]

    assert read_questions(write(tmp_path, *rows)) == [Question("a", ["b", "c"], 1)] * 2


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "", "choices": ["b", "c"], "answer": 0}, "prompt is no text"),
        ({"prompt": "a", "choices": ["b"], "answer": 0}, "no list of two or more"),
        ({"prompt": "a", "choices": ["b", ""], "answer": 0}, "a choice is no text"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": 2}, "answer 2 is none of the 2 choices"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": True}, "answer True is none"),
        ({"prompt": "a", "choices": ["b", "b"], "answer": "b"}, "answer 'b' is none"),
        ({"question": "a"}, "prompt is no text, choices is no list"),
    ],
)
def test_a_row_that_is_no_question_is_named(row: Any, words: str, tmp_path: Path) -> None:
    good = {"prompt": "a", "choices": ["b", "c"], "answer": 0}

    with pytest.raises(DataError, match=r"questions\.jsonl:2: ") as caught:
        read_questions(write(tmp_path, good, row))

    assert words in str(caught.value)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "questions.jsonl"
    place.write_text("\n", encoding="utf-8")

    with pytest.raises(DataError, match="has no rows"):
        read_questions(place)
