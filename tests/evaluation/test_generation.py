"""What a model writes does not depend on who else is in the batch, and its scores are those of the field's tools."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from peftkit.adapters.target import find_target, open_target
from peftkit.evaluation.generation import score_texts, write
from peftkit.models.attention_kernels import VARLEN
from peftkit.recipe.hyperparameters import Generation

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


WRITTEN = ["The cat sat on the mat .", "Hello there, general!", "Nothing like it"]
REFERENCES = [
    ["The cat is on the mat .", "A cat sat on a mat ."],
    ["Hello there, general!", "Hello, you bold one."],
    ["Something else", "Another thing entirely"],
]


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter"])
def test_a_score_is_that_of_sacrebleus_own_command(metric: str, tmp_path: Path) -> None:
    (tmp_path / "written").write_text("\n".join(WRITTEN) + "\n", encoding="utf-8")
    for number in (0, 1):
        lines = [group[number] for group in REFERENCES]
        (tmp_path / f"reference{number}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "reference0", "reference1", "-i", "written", "-m", metric]

    done = subprocess.run([*command, "-b", "-w", "10"], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert getattr(score_texts(WRITTEN, REFERENCES), metric) == pytest.approx(float(done.stdout), abs=1e-9)


def test_a_completion_that_is_one_of_its_references_is_right() -> None:
    scores = score_texts([f" {text}\n" for text in WRITTEN], REFERENCES)

    assert scores.exact_match == pytest.approx(1 / 3)
    assert (scores.prompts, scores.references) == (3, 6)


def test_completions_may_have_different_numbers_of_references() -> None:
    scores = score_texts(WRITTEN, [REFERENCES[0], REFERENCES[1][:1], REFERENCES[2]])

    assert scores.references == 5
    assert "nrefs:var" in scores.signatures["bleu"]


def test_what_is_right_word_for_word_has_every_point() -> None:
    scores = score_texts(WRITTEN[:2], [[text] for text in WRITTEN[:2]])

    assert (scores.exact_match, scores.ter) == (1.0, 0.0)
    assert [scores.bleu, scores.chrf, scores.rouge_l] == pytest.approx([100.0, 100.0, 100.0])
