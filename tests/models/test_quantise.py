"""What bitsandbytes makes of a base can be turned back into the numbers it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftkit.models.base import LocatedBase, locate_base
from peftkit.models.quantise import dequantised_base, load_quantised, quantised_modules
from peftkit.recipe.hyperparameters import Quantization
from peftkit.recipe.schema import Base

WAYS = {
    "nf4": (Quantization(), 1e-5),
    "fp4": (Quantization(bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=False), 1e-5),
    "int8": (Quantization(load_in_4bit=False, load_in_8bit=True), 0.1),
}
IDS = torch.arange(40)[None]


@pytest.fixture(scope="module")
def base() -> LocatedBase:
    return locate_base(Base(model="builtin:tiny-gpt2"))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS).logits.float()
    return found


@pytest.mark.parametrize("way", WAYS)
def test_a_dequantised_base_computes_what_the_quantised_one_does(way: str, base: LocatedBase) -> None:
    quantization, bound = WAYS[way]
    quantised = load_quantised(base, base.config(), quantization, "float32", "cpu")
    expected = logits(quantised)

    plain = logits(dequantised_base(quantised, base, base.config()))
    original = logits(base.load(base.config(), "float32"))

    scale = expected.abs().max()
    assert (plain - expected).abs().max() / scale < bound
    assert (original - expected).abs().max() / scale > 1e-3


def test_every_layer_but_embeddings_and_head_is_quantised(base: LocatedBase) -> None:
    quantised = load_quantised(base, base.config(), Quantization(), "float32", "cpu")

    assert len(quantised_modules(quantised)) == 16
    assert quantised.lm_head.weight is quantised.transformer.wte.weight


def test_evaluation_leaves_a_quantised_model_able_to_train(base: LocatedBase) -> None:
    quantised = load_quantised(base, base.config(), Quantization(), "float32", "cpu")
    before = logits(quantised)

    quantised.train()
    embeddings = quantised.get_input_embeddings()(IDS).detach().requires_grad_()
    quantised(inputs_embeds=embeddings).logits.sum().backward()

    assert embeddings.grad is not None
    assert torch.equal(logits(quantised), before)


def test_a_plain_model_has_no_quantised_modules(base: LocatedBase) -> None:
    assert quantised_modules(base.load(base.config(), "float32")) == {}
