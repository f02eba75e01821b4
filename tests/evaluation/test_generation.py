"""What a model writes does not depend on who else is in the batch."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from peftkit.adapters.target import find_target, open_target
from peftkit.data.formats.spans import prompt_ids
from peftkit.evaluation.generation import write
from peftkit.models.varlen import VARLEN
from peftkit.recipe.evidence import Generation

PROMPTS = ["The inn by the bridge", "Everyone in town knows", "If"]


def continued(opened: Any, prompts: list[str], *, temperature: float = 0.0, **settings: int) -> list[str]:
    rows, tokenizer = [prompt_ids(prompt, opened.tokenizer) for prompt in prompts], opened.tokenizer
    ends = [tokenizer.eos_token_id]
    return write(opened.model, tokenizer, rows, Generation(**settings), ends, temperature=temperature)


@pytest.fixture(scope="module")
def opened() -> Any:
    return open_target(find_target("builtin:tiny-gpt2"), "cpu")


def test_a_batch_writes_what_each_prompt_writes_alone(opened: Any) -> None:
    together = continued(opened, PROMPTS, max_new_tokens=12)
    alone = [continued(opened, [prompt], max_new_tokens=12)[0] for prompt in PROMPTS]

    assert together == alone
    assert all(together)


def test_writing_stops_at_the_end_of_the_text(opened: Any) -> None:
    (text,) = continued(opened, ["The inn by the bridge is called"], max_new_tokens=100)

    assert text.endswith(".")
    assert "<|endoftext|>" not in text


def test_writing_stops_at_every_end_token_of_the_data_and_of_the_model(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = opened.tokenizer
    rows, settings = [prompt_ids(PROMPTS[0], tokenizer)], Generation(max_new_tokens=12)
    (whole,) = write(opened.model, tokenizer, rows, settings, [tokenizer.eos_token_id])
    word = tokenizer(whole)["input_ids"][3]

    by_data = write(opened.model, tokenizer, rows, settings, [tokenizer.eos_token_id, word])
    monkeypatch.setattr(opened.model.generation_config, "eos_token_id", [1, word])
    by_model = write(opened.model, tokenizer, rows, settings, [tokenizer.eos_token_id])

    assert by_data == by_model == [tokenizer.decode(tokenizer(whole)["input_ids"][:4])]


def test_a_temperature_makes_other_texts(opened: Any) -> None:
    greedy = continued(opened, PROMPTS, max_new_tokens=12)

    assert continued(opened, PROMPTS, max_new_tokens=12, temperature=2.0) != greedy


def test_beams_find_a_likelier_text_and_ngrams_come_once(opened: Any) -> None:
    beams = continued(opened, PROMPTS, max_new_tokens=12, num_beams=4, batch_size=1)
    together = continued(opened, PROMPTS, max_new_tokens=12, num_beams=4)
    (text,) = continued(opened, PROMPTS[:1], max_new_tokens=60, no_repeat_ngram_size=2)

    words = opened.tokenizer(PROMPTS[0] + text)["input_ids"]
    assert beams == together
    assert len(set(pairwise(words))) == len(words) - 1


def test_a_prompt_that_leaves_no_room_loses_its_beginning(opened: Any) -> None:
    longest = opened.model.config.max_position_embeddings
    prompt = "The inn by the bridge is called the Red Fox. " * longest

    assert continued(opened, [prompt], max_new_tokens=8)[0]


def test_a_prompt_of_nothing_starts_from_the_end_token(opened: Any) -> None:
    assert continued(opened, [""], max_new_tokens=4)[0]


def test_a_finished_run_can_be_opened_and_writes(runs: dict[str, Path]) -> None:
    opened = open_target(find_target(str(runs["full"])), "cpu")

    assert continued(opened, ["name: Red Fox |"], max_new_tokens=5)[0]


def test_writing_uses_sdpa_and_leaves_the_attention_of_training_as_it_was(
    opened: Any, varlen_on_cpu: list[dict[str, Any]]
) -> None:
    expected = continued(opened, PROMPTS, max_new_tokens=4)
    opened.model.set_attn_implementation(VARLEN)

    written = continued(opened, PROMPTS, max_new_tokens=4)

    left = opened.model.config._attn_implementation
    opened.model.set_attn_implementation("sdpa")
    assert written == expected
    assert varlen_on_cpu == []
    assert left == VARLEN
