"""What a model writes does not depend on who else is in the batch, and its scores are those of the field's tools."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from peftkit.adapters.target import find_target, open_target
from peftkit.data.formats.spans import prompt_ids
from peftkit.evaluation.generation import score_texts, write
from peftkit.models.attention_kernels import VARLEN
from peftkit.recipe.schema import Generation

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
