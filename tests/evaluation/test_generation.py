"""What a model writes does not depend on who else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftkit.adapters.target import find_target
from peftkit.evaluation.generation import exact_match, write
from peftkit.models.target import open_target

PROMPTS = ["The inn by the bridge", "Everyone in town knows", "If"]


@pytest.fixture(scope="module")
def opened() -> Any:
    return open_target(find_target("builtin:tiny-gpt2"), "cpu")


def test_a_batch_writes_what_each_prompt_writes_alone(opened: Any) -> None:
    together = write(opened.model, opened.tokenizer, PROMPTS, max_new_tokens=12)
    alone = [write(opened.model, opened.tokenizer, [prompt], max_new_tokens=12)[0] for prompt in PROMPTS]

    assert together == alone
    assert all(together)


def test_writing_stops_at_the_end_of_the_text(opened: Any) -> None:
    (text,) = write(opened.model, opened.tokenizer, ["The inn by the bridge is called"], max_new_tokens=100)

    assert text.endswith(".")
    assert "<|endoftext|>" not in text


def test_a_temperature_makes_other_texts(opened: Any) -> None:
    greedy = write(opened.model, opened.tokenizer, PROMPTS, max_new_tokens=12)

    assert write(opened.model, opened.tokenizer, PROMPTS, max_new_tokens=12, temperature=2.0) != greedy


def test_exact_match_counts_completions_that_are_right(opened: Any) -> None:
    written = write(opened.model, opened.tokenizer, PROMPTS[:2], max_new_tokens=8)
    pairs = [(PROMPTS[0], f" {written[0]} "), (PROMPTS[1], "something else")]

    assert exact_match(opened.model, opened.tokenizer, pairs, max_new_tokens=8) == 0.5


def test_a_prompt_of_nothing_starts_from_the_end_token(opened: Any) -> None:
    assert write(opened.model, opened.tokenizer, [""], max_new_tokens=4)[0]


def test_a_finished_run_can_be_opened_and_writes(runs: dict[str, Path]) -> None:
    opened = open_target(find_target(str(runs["full"])), "cpu")

    assert write(opened.model, opened.tokenizer, ["name: Red Fox |"], max_new_tokens=5)[0]
