"""What an adapter's tensors mean is what PEFT makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from peftkit.adapters.combine import products_of
from peftkit.adapters.files import Adapter
from peftkit.adapters.inspect import kinds_of, place_of
from peftkit.errors import TargetError
from peftkit.models.methods.lora import folded

WriteAdapter = Callable[..., Path]


class Small(nn.Module):
    """A table, and two layers of which each has two kinds of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.h = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(6, 8), "down": nn.Linear(8, 6)}) for _ in range(12))


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
    "patterns": {"rank_pattern": {"h.1.up": 2, "down": 4}, "alpha_pattern": {"h.11.down": 5, "up": 1}},
    "embedding": {"target_modules": ["table", "up"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_the_update_has_the_weight_that_peft_merges(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {"r": 3, "lora_alpha": 6, "target_modules": ["up", "down"]} | KINDS[kind]
    model = Small()
    adapted = get_peft_model(model, LoraConfig(**settings))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path)

    factors = products_of(Adapter.read(tmp_path))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}

    assert set(factors) == set(layers)
    for name, layer in layers.items():
        base: Any = layer.get_base_layer()
        before, turned = base.weight.detach().numpy().copy(), factors[name].embedding
        bias = np.zeros(0) if turned else base.bias.detach().numpy().copy()
        layer.merge(safe_merge=True)
        found = factors[name].adapted(before, turned=turned)
        other_way = factors[name].adapted(np.ascontiguousarray(before.T), turned=not turned)
        assert np.allclose(found, base.weight.detach().numpy(), rtol=1e-4, atol=1e-5)
        assert np.allclose(other_way.T, found, rtol=1e-4, atol=1e-5)
        own_bias = factors[name].bias
        if own_bias is not None:
            assert np.allclose(bias + own_bias * factors[name].scaling, base.bias.detach().numpy(), atol=1e-5)


def test_the_svd_is_that_of_the_product(write_adapter: WriteAdapter) -> None:
    factors = products_of(Adapter.read(write_adapter()))["h.0.proj"]

    left, values, right = factors.svd()

    product = factors.scaling * factors.b @ factors.a
    assert np.allclose((left * values) @ right, product, atol=1e-5)
    assert np.allclose(values, np.linalg.svd(product, compute_uv=False)[:2], atol=1e-5)


def test_folding_multiplies_the_scaling_in(write_adapter: WriteAdapter) -> None:
    factors = products_of(Adapter.read(write_adapter()))["h.0.proj"]
    nothing = np.zeros((5, 6), np.float32)

    assert folded(factors).scaling == 1
    assert np.allclose(folded(factors, -0.5).adapted(nothing), -0.5 * factors.adapted(nothing), atol=1e-6)


def test_parameters_that_were_trained_whole_go_by_the_bases_names(write_adapter: WriteAdapter) -> None:
    whole = {
        "base_model.model.head.weight": np.ones((3, 2), np.float32),
        "base_model.model.h.0.proj.base_layer.bias": np.ones(5, np.float32),
    }

    adapter = Adapter.read(write_adapter(tensors=whole))

    assert {name: tensor.shape for name, tensor in adapter.whole.items()} == {
        "head.weight": (3, 2),
        "h.0.proj.bias": (5,),
    }


def test_half_of_a_pair_is_an_error(write_adapter: WriteAdapter) -> None:
    folder = write_adapter(tensors={"base_model.model.h.1.proj.lora_B.weight": None})

    with pytest.raises(TargetError, match=r"h\.1\.proj has not both of its matrices"):
        _ = Adapter.read(folder).updates


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "begun with pissa_niter_4"),
        ({"layer_replication": [[0, 1]]}, "repeats layers"),
    ],
)
def test_an_adapter_that_is_more_than_products_is_refused(
    config: dict[str, Any], words: str, write_adapter: WriteAdapter
) -> None:
    with pytest.raises(TargetError, match=words):
        _ = Adapter.read(write_adapter(**config)).updates


def test_places_are_told_from_names() -> None:
    assert place_of("transformer.h.11.attn.c_attn") == (11, "attn.c_attn")
    assert place_of("lm_head") == (None, "lm_head")
    assert kinds_of(["h.0.up", "h.1.up", "h.0.down", "head"]) == ["up", "down", "head"]
