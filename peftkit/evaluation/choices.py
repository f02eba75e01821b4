"""Accuracy where one of several continuations is right, by their likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from peftkit.data.choices import Question
from peftkit.data.collator import Collator
from peftkit.data.formats.format import NO_LABEL, first_tokens
from peftkit.data.sequences import Features
from peftkit.models.loss import row_losses
from peftkit.models.start import padding_id, positions
from peftkit.planning.precision import ChosenPrecision

__all__ = ["ChoiceScores", "score_choices"]


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
