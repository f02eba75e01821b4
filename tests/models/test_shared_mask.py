"""The mask of packed documents is made and kept once for all layers, and hides what it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import MistralConfig, MistralForCausalLM, set_seed

from peftkit.models.attention_kernels import SHARED_MASK
from peftkit.models.base import locate_base
from peftkit.recipe.schema import Base

TOKENS, LAYERS = 21, 3
POSITIONS = torch.cat([torch.arange(9), torch.arange(12)])[None].repeat(2, 1)


def mistral(**options: Any) -> Any:
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, **options,
    )  # fmt: skip
    return MistralForCausalLM(config)


@pytest.fixture(params=["gpt2", "grouped queries", "a window"])
def model(request: pytest.FixtureRequest) -> Any:
    set_seed(0)
    if request.param == "gpt2":
        base = locate_base(Base(model="builtin:tiny-gpt2"))
        return base.load(base.config(), "float32")
    return mistral(sliding_window=4 if request.param == "a window" else None)


def loss_of(model: Any, **options: Any) -> torch.Tensor:
    ids = torch.arange(2 * TOKENS).view(2, TOKENS)
    logits = model(input_ids=ids, use_cache=False, **options).logits
    return cross_entropy(logits.float().flatten(0, 1), ids.flatten())


def kept_masks(
    model: Any, attention: str, precision: torch.dtype | None = None, positions: torch.Tensor = POSITIONS
) -> dict[int, torch.Tensor]:
    """Tensors [rows, any, tokens, tokens] that layers keep for the backward pass, by their memory."""
    kept = {}

    def look(values: torch.Tensor) -> torch.Tensor:
        if values.dim() == 4 and values.shape[-2:] == (TOKENS, TOKENS):
            kept[values.untyped_storage().data_ptr()] = values
        return values

    model.set_attn_implementation(attention)
    half = torch.autocast("cpu", precision, enabled=precision is not None)
    with torch.autograd.graph.saved_tensors_hooks(look, lambda values: values), half:
        loss_of(model, position_ids=positions)
    return kept


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_all_layers_keep_one_mask_where_each_kept_its_own(precision: torch.dtype | None) -> None:
    model = mistral(sliding_window=None)

    apart, shared = (kept_masks(model, name, precision) for name in ("sdpa", SHARED_MASK))

    (bias,) = shared.values()
    assert len(apart) == LAYERS
    assert bias.dtype == (precision or torch.float32)
    assert bias.untyped_storage().nbytes() == 2 * TOKENS * 24 * bias.element_size()  # rows of 24 values: aligned


def test_losses_and_gradients_are_those_of_sdpa(model: Any) -> None:
    found = []
    for name in ("sdpa", SHARED_MASK):
        model.set_attn_implementation(name)
        loss = loss_of(model, position_ids=POSITIONS)
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])

    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_rows_of_one_document_have_no_mask() -> None:
    model = mistral(sliding_window=None)

    assert kept_masks(model, SHARED_MASK, positions=torch.arange(TOKENS)[None]) == {}


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
@pytest.mark.parametrize("tokens", [1000, 1024])
def test_a_gpu_keeps_one_mask_in_sixteen_bits(device: str, tokens: int) -> None:
    model = mistral(sliding_window=None).to(device)
    positions = torch.cat([torch.arange(300), torch.arange(tokens - 300)])[None].to(device)
    ids = positions % 64
    held = {}
    for name in ("sdpa", SHARED_MASK):
        model.set_attn_implementation(name)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        with torch.autocast(device, torch.bfloat16):
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        held[name] = torch.cuda.memory_allocated() - before
        del logits

    mask_bytes = 2 * tokens * tokens
    assert held["sdpa"] - held[SHARED_MASK] > 0.8 * (LAYERS - 1) * mask_bytes
