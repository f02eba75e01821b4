"""What a model writes does not depend on who else is in the batch."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from peftkit.adapters.target import find_target, open_target
from peftkit.evaluation.generation import write
from peftkit.models.attention_kernels import VARLEN
from peftkit.recipe.evidence import Generation

PROMPTS = ["The inn by the bridge", "Everyone in town knows", "If"]


@pytest.fixture(scope="module")
def opened() -> Any:
    return open_target(find_target("builtin:tiny-gpt2"), "cpu")


def test_a_batch_writes_what_each_prompt_writes_alone(opened: Any) -> None:
    together = write(opened.model, opened.tokenizer, PROMPTS, Generation(max_new_tokens=12))
    alone = [write(opened.model, opened.tokenizer, [prompt], Generation(max_new_tokens=12))[0] for prompt in PROMPTS]

    assert together == alone
    assert all(together)


def test_writing_stops_at_the_end_of_the_text(opened: Any) -> None:
    (text,) = write(opened.model, opened.tokenizer, ["The inn by the bridge is called"], Generation(max_new_tokens=100))

    assert text.endswith(".")
    assert "<|endoftext|>" not in text


def test_a_temperature_makes_other_texts(opened: Any) -> None:
    greedy = write(opened.model, opened.tokenizer, PROMPTS, Generation(max_new_tokens=12))

    assert write(opened.model, opened.tokenizer, PROMPTS, Generation(max_new_tokens=12), temperature=2.0) != greedy


def test_beams_find_a_likelier_text_and_ngrams_come_once(opened: Any) -> None:
    beams = write(opened.model, opened.tokenizer, PROMPTS, Generation(max_new_tokens=12, num_beams=4, batch_size=1))
    together = write(opened.model, opened.tokenizer, PROMPTS, Generation(max_new_tokens=12, num_beams=4))
    (text,) = write(opened.model, opened.tokenizer, PROMPTS[:1], Generation(max_new_tokens=60, no_repeat_ngram_size=2))

    words = opened.tokenizer(PROMPTS[0] + text)["input_ids"]
    assert beams == together
    assert len(set(pairwise(words))) == len(words) - 1


def test_a_prompt_that_leaves_no_room_loses_its_beginning(opened: Any) -> None:
    longest = opened.model.config.max_position_embeddings
    prompt = "The inn by the bridge is called the Red Fox. " * longest

    assert write(opened.model, opened.tokenizer, [prompt], Generation(max_new_tokens=8))[0]


def test_a_prompt_of_nothing_starts_from_the_end_token(opened: Any) -> None:
    assert write(opened.model, opened.tokenizer, [""], Generation(max_new_tokens=4))[0]


def test_a_finished_run_can_be_opened_and_writes(runs: dict[str, Path]) -> None:
    opened = open_target(find_target(str(runs["full"])), "cpu")

    assert write(opened.model, opened.tokenizer, ["name: Red Fox |"], Generation(max_new_tokens=5))[0]


def test_writing_uses_sdpa_and_leaves_the_attention_of_training_as_it_was(
    opened: Any, varlen_on_cpu: list[dict[str, Any]]
) -> None:
    expected = write(opened.model, opened.tokenizer, PROMPTS, Generation(max_new_tokens=4))
    opened.model.set_attn_implementation(VARLEN)

    written = write(opened.model, opened.tokenizer, PROMPTS, Generation(max_new_tokens=4))

    left = opened.model.config._attn_implementation
    opened.model.set_attn_implementation("sdpa")
    assert written == expected
    assert varlen_on_cpu == []
    assert left == VARLEN
