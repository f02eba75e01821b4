"""Questions with several continuations, one of them right, and the accuracy by likelihood."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from peftkit.data.collator import Collator
from peftkit.data.files import file_rows
from peftkit.data.formats.format import NO_LABEL, RowError, first_tokens
from peftkit.data.sequences import Features
from peftkit.errors import DataError
from peftkit.models.loss import row_losses
from peftkit.models.start import padding_id, positions
from peftkit.planning.decisions import ChosenPrecision
from peftkit.recipe.references import DATA_SUFFIXES
from peftkit.recipe.schema import Data, Source

__all__ = ["ChoiceScores", "Question", "read_questions", "score_choices"]

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


@dataclass(frozen=True)
class ChoiceScores:
    """How often the likeliest continuation is the right one."""

    questions: int
    accuracy: float
    """By the likelihood of the whole continuation."""

    accuracy_by_length: float
    """By the likelihood for each byte of it, which does not favour short ones (Gao et al. 2021)."""

    standard_error: float
    """Of `accuracy`, over questions as drawn from many."""

    chance: float
    """What guessing gives."""


def score_choices(
    model: Any, tokenizer: Any, questions: Sequence[Question], batch_size: int, precision: ChosenPrecision
) -> ChoiceScores:
    """Measure the likelihood of each choice after its prompt; the end token is no part of it.

    Of a prompt that leaves no room for the choice in the model's positions, the end is taken.
    """
    rows = _rows(model, tokenizer, questions)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))
    batches: Any = DataLoader(
        [rows[index] for index in order],  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=Collator(padding_id(tokenizer)),
    )
    nats = np.zeros(len(rows))
    nats[order] = np.concatenate([losses.numpy() for losses, _ in row_losses(model, batches, precision)])
    right = right_by_length = begin = 0
    for question in questions:
        end = begin + len(question.choices)
        lengths = np.array([len(choice.encode()) for choice in question.choices])
        right += int(np.argmin(nats[begin:end])) == question.answer
        right_by_length += int(np.argmin(nats[begin:end] / lengths)) == question.answer
        begin = end
    count = len(questions)
    accuracy = right / count
    return ChoiceScores(
        questions=count,
        accuracy=accuracy,
        accuracy_by_length=right_by_length / count,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / count),
        chance=sum(1 / len(question.choices) for question in questions) / count,
    )


def _rows(model: Any, tokenizer: Any, questions: Sequence[Question]) -> list[Features]:
    """Each prompt with each of its choices, of which the choice is what counts."""
    first = first_tokens(tokenizer)
    seen = positions(model.config)
    prompts = tokenizer([question.prompt for question in questions], add_special_tokens=False)["input_ids"]
    rows: list[Features] = []
    for question, prompt in zip(questions, prompts, strict=True):
        given = [*first, *prompt]
        for choice in tokenizer(question.choices, add_special_tokens=False)["input_ids"]:
            kept = given[-(seen - len(choice)) :] if seen and seen > len(choice) else given
            labels = [NO_LABEL] * len(kept) + choice
            rows.append({"input_ids": np.array(kept + choice, np.int32), "labels": np.array(labels, np.int32)})
    return rows
