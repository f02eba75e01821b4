"""Scores of written text are those of the tools that the field uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from peftkit.evaluation.text import score_texts

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
