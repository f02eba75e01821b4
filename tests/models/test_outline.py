"""What a model takes is known from its structure: the very bytes that the real one has and keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftkit.models.kernels import use_fast_kernels
from peftkit.models.outline import activation_bytes, held_bytes, kept_for_backward, weight_bytes
from peftkit.recipe.loader import load_recipe
from peftkit.workflows.job import Job, prepare_job

ROWS, TOKENS = 4, 48


def job_of(recipe_path: Path, method: str, *overrides: str) -> Job:
    return prepare_job(load_recipe(recipe_path, method=method, overrides=overrides))


@pytest.mark.parametrize("dropout", ["0.0", "0.1"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_batch_keeps_what_the_outline_says(method: str, dropout: str, recipe_path: Path) -> None:
    job = job_of(recipe_path, method, f"base.dropout={dropout}")
    model = job.load().train()
    use_fast_kernels(model, job.hardware)
    inner = model.get_base_model() if method == "lora" else model
    ids = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS)

    with kept_for_backward(model) as kept:
        inner.transformer(input_ids=ids, use_cache=False)
    found = activation_bytes(job.start.outline(job.recipe, job.base_dtype), ROWS, TOKENS, "fp32", job.hardware)

    assert found == pytest.approx(sum(kept.values()), rel=0.05)


def test_half_precision_keeps_less_and_not_half(recipe_path: Path) -> None:
    job = job_of(recipe_path, "full")

    whole, half = (
        activation_bytes(job.start.outline(job.recipe, "float32"), ROWS, TOKENS, precision, job.hardware)
        for precision in ("fp32", "bf16")
    )

    assert 0.5 * whole < half < 0.9 * whole


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("full", ()),
        ("lora", ("lora.target_modules=all-linear",)),
        ("qlora", ()),
        ("qlora", ("quantization.bnb_4bit_use_double_quant=false",)),
        ("qlora", ("quantization={load_in_8bit: true}",)),
    ],
)
def test_weights_take_what_the_outline_says(method: str, overrides: tuple[str, ...], recipe_path: Path) -> None:
    job = job_of(recipe_path, method, *overrides)

    found = weight_bytes(job.start.outline(job.recipe, job.base_dtype), job.recipe.base_quantization)

    assert found == pytest.approx(held_bytes(job.load()), rel=0.05)
