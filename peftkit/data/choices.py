"""Questions with several answers, of which one is right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit.data.files import file_rows
from peftkit.data.formats.format import RowError
from peftkit.errors import DataError
from peftkit.recipe.references import DATA_SUFFIXES
from peftkit.recipe.schema import Data, Source

__all__ = ["Question", "read_questions"]

_SHOWN = 3
_COLUMNS = "Rows have prompt, choices (a list of texts) and answer (the right one's number from 0, or its text)."


@dataclass(frozen=True)
class Question:
    """A prompt, the continuations to choose from, and which of them is right."""

    prompt: str
    choices: list[str]
    answer: int


def read_questions(path: Path) -> list[Question]:
    """Every question of a .jsonl, .json or .parquet file.

    Raises:
        DataError: the file cannot be read, or rows are no questions; the first are listed.
    """
    if path.suffix.lower() not in DATA_SUFFIXES:
        raise DataError("has no suffix that says what it holds.", where=str(path), remedy="Use .jsonl or .parquet.")
    questions: list[Question] = []
    bad: list[str] = []
    for row in file_rows(path, Data(train=Source(path=str(path)))):
        try:
            if row.problem:
                raise RowError(row.problem)
            questions.append(_question(row.values))
        except RowError as error:
            bad.append(f"{row.place}: {error}")
    if bad:
        more = f"; and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
        raise DataError("; ".join(bad[:_SHOWN]) + more + ".", where="--choices", remedy=_COLUMNS)
    if not questions:
        raise DataError("has no rows.", where=str(path), remedy=_COLUMNS)
    return questions


def _question(values: dict[str, Any]) -> Question:
    prompt, choices, answer = (values.get(name) for name in ("prompt", "choices", "answer"))
    wrong = list(_faults(prompt, choices))
    if wrong:
        raise RowError(", ".join(wrong))
    assert isinstance(prompt, str)
    assert isinstance(choices, list)
    if isinstance(answer, str) and choices.count(answer) == 1:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise RowError(f"answer {answer!r} is none of the {len(choices)} choices")
    return Question(prompt, choices, answer)


def _faults(prompt: Any, choices: Any) -> Iterator[str]:
    if not isinstance(prompt, str) or not prompt.strip():
        yield "prompt is no text"
    if not isinstance(choices, list) or len(choices) < 2:
        yield "choices is no list of two or more"
    elif not all(isinstance(choice, str) and choice.strip() for choice in choices):
        yield "a choice is no text"
