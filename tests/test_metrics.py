"""Each figure is declared once, and written the same way everywhere."""

from __future__ import annotations

from dataclasses import fields

import pytest

from peftkit.evaluation.generation import TextScores
from peftkit.metrics import METRICS, duration, in_group, share, small
from peftkit.runs.manifest import RunMetrics


def test_every_figure_of_a_run_and_of_its_completions_is_declared() -> None:
    measured = {field.name for field in fields(RunMetrics)} | {"output_bytes"}
    scores = {field.name for field in fields(TextScores)} - {"prompts", "references", "signatures"}

    assert measured == set(in_group("quality", "cost", "run"))
    assert scores == set(in_group("completions"))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("perplexity", 1.0207857, "1.021"),
        ("perplexity", None, "not known"),
        ("exact_match", 0.25, "0.250"),
        ("bleu", 61.52, "61.5"),
        ("trainable_parameters", 16384, "16,384"),
        ("peak_memory_bytes", 2e9, "2.0 GB"),
        ("train_seconds", 61, "1 min 1 s"),
    ],
)
def test_a_value_is_written_in_its_unit(name: str, value: float | None, text: str) -> None:
    assert METRICS[name].text(value) == text


def test_a_mean_has_its_error_unless_it_is_a_cost() -> None:
    assert METRICS["eval_loss"].mean_text(1.5, 0.012) == "1.500 ± 0.012"
    assert METRICS["bleu"].mean_text(61.52, 0.8) == "61.5 ± 0.8"
    assert METRICS["train_seconds"].mean_text(12.3, 0.5) == "12 s"


def test_numbers_are_written_for_people() -> None:
    assert [small(1.0207857), small(123456.7), small(None)] == ["1.021", "123,457", "not known"]
    assert [duration(0.21), duration(61), duration(7265)] == ["0.2 s", "1 min 1 s", "2 h 1 min"]
    assert [share(16384, 957184), share(5, 5), share(None, 5)] == ["1.71%", "100%", "not known"]
