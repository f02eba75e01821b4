"""In float32, a model computes what its weights mean, whatever they are held in, and is unchanged afterwards."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PhiConfig

from peftkit.models import dtypes
from peftkit.models.dtypes import exact_float32
from peftkit.models.quantization import quantised_modules
from peftkit.recipe.loader import load_recipe
from peftkit.training.prepare import prepare_run

SHAPES = {
    "gpt2": GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=600, bos_token_id=0, eos_token_id=0),
    "llama": LlamaConfig(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=16, intermediate_size=32,
        vocab_size=600, bos_token_id=0, eos_token_id=0),
    "phi, whose head has a bias": PhiConfig(
        num_hidden_layers=2, num_attention_heads=2, hidden_size=32, intermediate_size=32, vocab_size=600,
        bos_token_id=0, eos_token_id=0),
}  # fmt: skip
IDS = torch.arange(40)[None]


@torch.inference_mode()
def logits_of(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", SHAPES)
def test_half_precision_weights_give_the_logits_of_the_same_numbers_in_float32(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "WIDENED_BYTES", 5000)  # a head in several parts
    torch.manual_seed(0)
    half = AutoModelForCausalLM.from_config(copy.deepcopy(SHAPES[kind])).to(dtype)
    whole = copy.deepcopy(half).float()
    before = {name: (id(weight), weight.dtype) for name, weight in half.named_parameters()}
    rounded = logits_of(half)

    with exact_float32(half):
        found = logits_of(half)

    expected = logits_of(whole)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6
    assert {name: (id(weight), weight.dtype) for name, weight in half.named_parameters()} == before
    assert torch.equal(logits_of(half), rounded)


def test_a_frozen_bias_that_was_rounded_in_place_is_the_bases_own_meanwhile(recipe_path: Path) -> None:
    job = prepare_run(load_recipe(recipe_path, method="qlora"))
    model = job.load()
    with exact_float32(model):
        expected = logits_of(model)

    for module in quantised_modules(model):
        module.compute_dtype = torch.bfloat16  # as on a GPU, with biases that were loaded in float32
    logits_of(model)
    rounded = [module.bias for module in quantised_modules(model)]

    assert {bias.dtype for bias in rounded} == {torch.bfloat16}
    with exact_float32(model):
        assert torch.equal(logits_of(model), expected)
    assert all(module.bias is bias for module, bias in zip(quantised_modules(model), rounded, strict=True))
