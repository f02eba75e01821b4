"""What a model takes is known from its structure: the very bytes that the real one has and keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import GPT2Config, GPT2LMHeadModel

from peftkit.models.base import LocatedBase
from peftkit.models.device import detect_hardware
from peftkit.models.kernels import use_fast_kernels
from peftkit.models.linear_cross_entropy import Head, summed_loss
from peftkit.models.outline import (
    UncountedError,
    activation_bytes,
    activation_parts,
    held_bytes,
    kept_for_backward,
    loss_parts,
    weight_bytes,
)
from peftkit.recipe.loader import load_recipe
from peftkit.training.prepare import Run, prepare_run
from tests import zoo

ROWS, TOKENS = 4, 48
NEWER = pytest.param(
    "gemma3",
    marks=pytest.mark.skipif(
        Version(transformers.__version__) < Version("5.5"), reason="this version asks for token types in training"
    ),
)


def job_of(recipe_path: Path, method: str, *overrides: str) -> Run:
    return prepare_run(load_recipe(recipe_path, method=method, overrides=overrides))


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


@pytest.mark.parametrize("name", ["gpt_neo", "codegen", "mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3", NEWER])
def test_models_that_look_at_values_and_mixtures_of_experts_are_counted_too(name: str, tmp_path: Path) -> None:
    model, hardware = zoo.make(name, tmp_path).train(), detect_hardware()
    use_fast_kernels(model, hardware)
    ids, base = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS), LocatedBase(name, tmp_path, None)

    with kept_for_backward(model) as kept:
        model.get_submodule(model.base_model_prefix)(input_ids=ids, use_cache=False)
    found = activation_bytes(base.structure(base.config()), ROWS, TOKENS, "fp32", hardware)

    assert found == pytest.approx(sum(kept.values()), rel=0.1)


def test_a_model_that_cannot_run_without_values_says_so(tmp_path: Path) -> None:
    zoo.make("jetmoe", tmp_path)
    base = LocatedBase("jetmoe", tmp_path, None)

    with pytest.raises(UncountedError, match="meta tensor"):
        activation_bytes(base.structure(base.config()), ROWS, TOKENS, "fp32", detect_hardware())


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_under_autocast_copies_of_weights_are_kept_once_whatever_the_rows(
    method: str, rows: int, recipe_path: Path
) -> None:
    job = job_of(recipe_path, method, "base.dropout=0.0", "lora.lora_dropout=0.0")
    model = job.load().train()
    use_fast_kernels(model, job.hardware)
    inner = model.get_base_model() if method == "lora" else model
    ids = torch.arange(rows * TOKENS).view(rows, TOKENS)

    with kept_for_backward(model) as kept, torch.autocast("cpu", torch.bfloat16):
        inner.transformer(input_ids=ids, use_cache=False)
    fixed, row = activation_parts(job.start.outline(job.recipe, job.base_dtype), TOKENS, "bf16", job.hardware)

    assert fixed + rows * row == pytest.approx(sum(kept.values()), rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("words", [600, 640])
def test_the_loss_holds_of_the_head_what_the_outline_says(words: int, trained: bool, precision: Any) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=words, bos_token_id=0, eos_token_id=0)
    linear = GPT2LMHeadModel(config).requires_grad_(trained).lm_head
    hidden, targets = torch.ones(700, 16, requires_grad=True), torch.ones(700, dtype=torch.long)
    head, dtype = Head(linear), {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]

    total: Any = summed_loss(hidden, head, targets, dtype)

    tensors = [head.operands(dtype).weight, *(each for each in total.grad_fn.gradients if each is not None)]
    sizes = {each.data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    sizes.pop(linear.weight.data_ptr(), None)
    with torch.device("meta"):
        outline = GPT2LMHeadModel(config).requires_grad_(trained)
    fixed, token = loss_parts(outline, precision, "cpu")
    assert fixed + 700 * token == sum(sizes.values())


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
