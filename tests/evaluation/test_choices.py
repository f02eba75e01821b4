"""The likeliest of several answers is found as by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftkit.adapters.target import find_target, open_target
from peftkit.data.choices import Question
from peftkit.evaluation.choices import score_choices

QUESTIONS = [
    Question("The inn by the bridge", [" is called the Red Fox.", " xq zv"], 0),
    Question("Everyone in town", [" 9 9 9", " knows the", " of of of"], 1),
    Question("The inn", [" is", " is called the Red Fox at the mill."], 1),
]


@pytest.fixture(scope="module")
def opened() -> Any:
    return open_target(find_target("builtin:tiny-gpt2"), "cpu")


def log_likelihood(opened: Any, prompt: str, choice: str) -> float:
    given, wanted = opened.tokenizer(prompt)["input_ids"], opened.tokenizer(choice)["input_ids"]
    with torch.inference_mode():
        logits = opened.model(torch.tensor([given + wanted])).logits[0].log_softmax(-1)
    return sum(float(logits[len(given) + place - 1, token]) for place, token in enumerate(wanted))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_accuracy_is_that_of_each_likelihood_alone(batch_size: int, opened: Any) -> None:
    alone = [[log_likelihood(opened, each.prompt, choice) for choice in each.choices] for each in QUESTIONS]
    right = [scores.index(max(scores)) == each.answer for scores, each in zip(alone, QUESTIONS, strict=True)]

    scores = score_choices(opened.model, opened.tokenizer, QUESTIONS, batch_size, "fp32")

    assert scores.accuracy == sum(right) / 3
    assert scores.accuracy >= 2 / 3
    assert scores.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)


def test_a_prompt_longer_than_the_model_sees_loses_its_beginning(opened: Any) -> None:
    question = Question("The inn by the bridge is called the Red Fox. " * 60, [" The", " zzz"], 0)

    assert score_choices(opened.model, opened.tokenizer, [question], 1, "fp32").questions == 1
