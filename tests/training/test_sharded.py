"""Weights that are spread come back as they were, to be saved and to be gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.tensor import DTensor

from peftkit.errors import FieldError
from peftkit.models.loss import evaluate_loss
from peftkit.planning.hardware import Hardware
from peftkit.recipe.loader import load_recipe
from peftkit.training.prepare import prepare_run
from peftkit.training.processes import ALONE
from peftkit.training.weights import Shards, check_types, whole_tensor

CPU = Hardware("cpu", "a CPU", 24 * 10**9, 1, 2)
IDS = torch.arange(12).reshape(2, 6)
BATCH = {"input_ids": IDS, "labels": IDS}


@pytest.fixture
def group() -> Iterator[None]:
    """Processes that compute together, of which this one is the only one."""
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(params=["full", "lora"])
def model(request: pytest.FixtureRequest, recipe_path: Path) -> Any:
    """A model to train, whole."""
    return prepare_run(load_recipe(recipe_path, method=request.param)).load()


def step(model: Any, optimizer: Any) -> None:
    """An optimizer step."""
    model(**BATCH, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def trained(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the trained weights."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in {**ours, **theirs})


@pytest.mark.usefixtures("group")
def test_spread_weights_leave_the_model_and_come_back_to_be_saved(model: Any) -> None:
    before, loss = trained(model), evaluate_loss(model, [BATCH], "fp32")
    shards = Shards(model, ALONE, "cpu")
    shards.spread()

    assert all(isinstance(weight, DTensor) for weight in shards.model.parameters())
    assert not any(weight.numel() for weight in model.parameters())
    assert evaluate_loss(shards.model, [BATCH], "fp32") == loss
    with shards.gathered() as whole:
        assert whole is model
        assert same(trained(model), before)
    assert not any(weight.numel() for weight in model.parameters())
    shards.unite()
    assert evaluate_loss(model, [BATCH], "fp32") == loss


@pytest.mark.usefixtures("group")
def test_sharded_weights_and_their_optimizer_go_on_from_what_was_saved(model: Any, tmp_path: Path) -> None:
    shards = Shards(model.eval(), ALONE, "cpu")
    shards.spread()
    optimizer = torch.optim.AdamW(shards.model.parameters(), lr=1e-2, fused=True)
    step(shards.model, optimizer)
    with shards.gathered() as whole:
        whole.save_pretrained(tmp_path)
    state = deepcopy(shards.state_of(optimizer))
    step(shards.model, optimizer)
    with shards.gathered() as whole:
        expected = trained(whole)

    shards.load(tmp_path)
    shards.load_state(optimizer, state)
    step(shards.model, optimizer)

    assert not any(isinstance(value, DTensor) for values in state["state"].values() for value in values.values())
    with shards.gathered() as whole:
        assert same(trained(whole), expected)


def test_trained_weights_of_two_types_are_refused(model: Any) -> None:
    next(weight for weight in model.parameters() if weight.requires_grad).data = torch.zeros(4, dtype=torch.bfloat16)

    with pytest.raises(FieldError, match="bfloat16 and float32"):
        check_types(model)


def test_a_tensor_without_parts_is_whole() -> None:
    norm = torch.tensor(1.5)

    assert whole_tensor(norm) is norm
