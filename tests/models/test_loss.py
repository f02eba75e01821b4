"""The loss is a mean over tokens: neither batch size nor padding nor packing changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from peftkit.data.collator import Collator
from peftkit.data.grammar import corpus
from peftkit.data.prepare import Prepared, prepare
from peftkit.models.attention_kernels import BOUNDS, VARLEN
from peftkit.models.base import LocatedBase, locate_base
from peftkit.models.loss import Loss, evaluate_loss
from peftkit.recipe.schema import Base, Data


@pytest.fixture(scope="module")
def base() -> LocatedBase:
    return locate_base(Base(model="builtin:tiny-gpt2"))


@pytest.fixture(scope="module")
def model(base: LocatedBase) -> Any:
    return base.load(base.config(), "float32")


def prepared(base: LocatedBase, folder: Path, packing: bool) -> Prepared:
    (folder / "text.txt").write_text("\n".join(corpus("validation")[:12]) + "\n", encoding="utf-8")
    data = Data.model_validate({"train": {"path": str(folder / "text.txt")}, "max_length": 128, "packing": packing})
    return prepare(data, base.tokenizer()).train


@pytest.fixture(scope="module")
def llama(base: LocatedBase) -> Any:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(base.tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def measure_loss(model: Any, data: Prepared, batch_size: int) -> Loss:
    dataset: Any = data.sequences
    batches: Any = DataLoader(dataset, batch_size=batch_size, collate_fn=Collator(1))
    return evaluate_loss(model, batches, "fp32")


@pytest.mark.parametrize("family", ["model", "llama"])
def test_neither_batch_size_nor_packing_changes_the_loss(
    family: str, base: LocatedBase, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(family)
    apart, together = (prepared(base, tmp_path, packing) for packing in (False, True))
    losses = [measure_loss(model, data, size) for data in (apart, together) for size in (1, 3, 64)]

    assert len({loss.tokens for loss in losses}) == 1
    assert together.counts.sequences < apart.counts.sequences
    assert [loss.mean for loss in losses] == pytest.approx([losses[0].mean] * 6, rel=1e-5)


def test_the_loss_is_that_of_torch_over_all_tokens(base: LocatedBase, model: Any, tmp_path: Path) -> None:
    data = prepared(base, tmp_path, packing=False)
    total = torch.zeros(())
    with torch.no_grad():
        for index in range(len(data.sequences)):
            ids = torch.from_numpy(data.sequences[index]["input_ids"]).long()
            total += functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="sum")

    assert measure_loss(model, data, 4).total == pytest.approx(float(total), rel=1e-5)


def test_the_bounds_of_a_batch_reach_the_attention(model: Any, varlen_on_cpu: list[dict[str, Any]]) -> None:
    ids = torch.arange(2, 12)[None]
    bounds = torch.tensor([0, 3, 10], dtype=torch.int32)  # others than positions would show
    model.set_attn_implementation(VARLEN)

    evaluate_loss(model, [{"input_ids": ids, "labels": ids, "position_ids": ids, BOUNDS: bounds}], "fp32")

    model.set_attn_implementation("sdpa")
    assert varlen_on_cpu[-1]["bounds"] == [0, 3, 10]
