"""What bitsandbytes makes of a base can be turned back into the numbers it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftkit.models.base import LocatedBase, locate_base
from peftkit.models.methods.lora import METHOD
from peftkit.models.quantization import quantised_modules
from peftkit.models.quantization.bitsandbytes import BACKEND
from peftkit.recipe.hyperparameters import Lora, Quantization
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
    quantised = BACKEND.load(base, base.config(), quantization, "float32", "cpu")
    expected = logits(quantised)

    structure, plain = base.structure(base.config()), base.load(base.config(), "float32")
    layers = BACKEND.prepared(structure, quantization, "float32")
    for module, layer in layers.items():
        weight = plain.get_submodule(module).weight.data  # of a Conv1D: the transpose of a Linear's
        weight.copy_(BACKEND.rounded(layer, weight.T).T)
    found = logits(plain)
    original = logits(base.load(base.config(), "float32"))

    scale = expected.abs().max()
    assert (found - expected).abs().max() / scale < bound
    assert (original - expected).abs().max() / scale > 1e-3


def test_every_layer_but_embeddings_and_head_is_quantised(base: LocatedBase) -> None:
    quantised = BACKEND.load(base, base.config(), Quantization(), "float32", "cpu")

    assert len(quantised_modules(quantised)) == 16
    assert quantised.lm_head.weight is quantised.transformer.wte.weight


def test_evaluation_leaves_a_quantised_model_able_to_train(base: LocatedBase) -> None:
    quantised = BACKEND.load(base, base.config(), Quantization(), "float32", "cpu")
    before = logits(quantised)

    quantised.train()
    embeddings = quantised.get_input_embeddings()(IDS).detach().requires_grad_()
    quantised(inputs_embeds=embeddings).logits.sum().backward()

    assert embeddings.grad is not None
    assert torch.equal(logits(quantised), before)


@pytest.mark.parametrize("way", ["nf4", "int8"])
def test_dora_trains_on_a_quantised_base(way: str, base: LocatedBase) -> None:
    quantised = BACKEND.load(base, base.config(), WAYS[way][0], "float32", "cpu")
    adapted = METHOD.attach(quantised, Lora(use_dora=True), ["transformer.h.0.attn.c_attn"], base.folder)
    first = logits(adapted)

    adapted.train()
    for _ in range(2):
        adapted(input_ids=IDS, labels=IDS).loss.backward()

    magnitudes = [weight for name, weight in adapted.named_parameters() if "lora_magnitude_vector" in name]
    assert [weight.grad is not None and bool(weight.grad.any()) for weight in magnitudes] == [True]
    assert torch.allclose(logits(adapted), first, rtol=0.1, atol=0.1)


def test_a_plain_model_has_no_quantised_modules(base: LocatedBase) -> None:
    assert quantised_modules(base.load(base.config(), "float32")) == {}
