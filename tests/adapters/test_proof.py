"""The proof's figures are those of the two models, and a model that cannot be opened is told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from peftkit.adapters.proof import Sample, compare, compare_in_fresh_process, logits_of
from peftkit.errors import RunError, TargetError
from peftkit.models.attention_kernels import VARLEN

ROWS = [[1, 2, 3, 4], [5, 6]]
SAMPLE = Sample("validation data", ROWS, [[-100, 2, 3, 4], [-100, 6]])


def rows(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(row), 10, generator=generator) for row in ROWS]


def test_equal_logits_agree_in_everything() -> None:
    found = compare(rows(0), rows(0), SAMPLE)

    assert (found.largest_difference, found.relative_error, found.same_next_token) == (0, 0, 1)
    assert found.kl_divergence == pytest.approx(0, abs=1e-12)
    assert found.tokens == 6


def test_every_figure_is_what_its_name_says() -> None:
    found, expected = rows(1), rows(2)
    one, other = torch.cat(found), torch.cat(expected)
    log_q, log_p = one.double().log_softmax(-1), other.double().log_softmax(-1)
    loss = torch.nn.functional.cross_entropy(
        torch.cat([expected[0][:3], expected[1][:1]]).double(), torch.tensor([2, 3, 4, 6])
    )

    agreement = compare(found, expected, SAMPLE)

    assert agreement.largest_difference == pytest.approx(float((one - other).abs().max()))
    assert agreement.relative_error == pytest.approx(float((one - other).abs().max() / other.abs().max()))
    assert agreement.kl_divergence == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
    assert agreement.same_next_token == pytest.approx(float((one.argmax(-1) == other.argmax(-1)).float().mean()))
    assert agreement.expected_perplexity == pytest.approx(float(loss.exp()))


def test_random_tokens_have_no_perplexity() -> None:
    sample = Sample("random tokens", ROWS, ROWS)

    assert compare(rows(1), rows(2), sample).found_perplexity is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    found = rows(1)
    found[1][0, 3] = value

    with pytest.raises(RunError, match="not finite"):
        compare(found, rows(1), SAMPLE)
    with pytest.raises(RunError, match="not finite"):
        compare(rows(1), found, SAMPLE)


def test_a_fresh_process_finds_what_this_one_does(runs: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(runs["full"] / "model", dtype=torch.float32)
    expected = logits_of(model, SAMPLE)

    same = compare_in_fresh_process(runs["full"] / "model", expected, SAMPLE)
    other = compare_in_fresh_process(runs["full"] / "model", [2 * row for row in expected], SAMPLE)

    assert same.relative_error < 1e-6
    assert other.relative_error == pytest.approx(0.5, rel=1e-5)
    assert other.same_next_token == 1


def test_a_model_that_cannot_be_opened_is_told_by_the_fresh_process(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a fresh process cannot open the model"):
        compare_in_fresh_process(tmp_path, rows(0), SAMPLE)


def test_a_proof_uses_sdpa_and_leaves_the_attention_of_training_as_it_was(
    runs: dict[str, Path], varlen_on_cpu: list[dict[str, Any]]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(runs["full"] / "model", dtype=torch.float32)
    expected = logits_of(model, SAMPLE)
    model.set_attn_implementation(VARLEN)

    found = logits_of(model, SAMPLE)

    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert varlen_on_cpu == []
    assert model.config._attn_implementation == VARLEN


def test_random_tokens_are_the_same_every_time_and_all_over_the_vocabulary() -> None:
    sample = Sample.random(1024)
    ids = [token for row in sample.input_ids for token in row]

    assert sample == Sample.random(1024)
    assert sample.tokens == 128
    assert sample.source == "random tokens"
    assert min(ids) < 100 < 900 < max(ids) < 1024
    assert len(set(ids)) > 100


def test_a_trained_adapter_keeps_some_of_its_validation_rows(runs: dict[str, Path]) -> None:
    sample = Sample.read(runs["lora"] / "adapter", 1024)

    assert sample.source == "validation data"
    assert len(sample.input_ids) == 8
    assert all(0 < len(row) <= 64 for row in sample.input_ids)
    assert all(label in (-100, token) for row, labels in zip(sample.input_ids, sample.labels, strict=True)
               for token, label in zip(row, labels, strict=True))  # fmt: skip
    assert any(label != -100 for labels in sample.labels for label in labels)


def test_without_one_there_are_random_tokens(tmp_path: Path) -> None:
    assert Sample.read(tmp_path, 50) == Sample.random(50)


@pytest.mark.parametrize(
    "values",
    [
        {"source": "text", "input_ids": [[1, 2]], "labels": [[1]]},
        {"source": "text", "input_ids": [[1, 99]], "labels": [[1, 99]]},
        {"source": "text", "input_ids": [], "labels": []},
        {"source": "text", "input_ids": [[]], "labels": [[]]},
        {"input_ids": [[1]], "labels": [[1]]},
        [],
    ],
)
def test_a_damaged_one_is_an_error(values: object, tmp_path: Path) -> None:
    (tmp_path / "sample.json").write_text(json.dumps(values), encoding="utf-8")

    with pytest.raises(TargetError, match=r"sample\.json: is damaged"):
        Sample.read(tmp_path, 50)
