"""The figures of an adapter's updates are those of the updates themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from peftkit.adapters.combine import products_of
from peftkit.adapters.files import Adapter, Floats
from peftkit.adapters.inspect import inspect_modules, inspect_whole

WriteAdapter = Callable[..., Path]
MODULE = "base_model.model.h.0.proj"


def no_base(name: str) -> Floats | None:
    del name
    return None


def base(name: str) -> Floats | None:
    return np.full((5, 6), 2, np.float32) if name.endswith("proj.weight") else None


def test_norms_and_the_largest_number_are_those_of_the_product(write_adapter: WriteAdapter) -> None:
    adapter = Adapter.read(write_adapter())
    factors = products_of(adapter)["h.0.proj"]
    product = factors.scaling * factors.b @ factors.a

    first, second = inspect_modules(adapter, base)

    assert (first.layer, first.target, first.rank, first.scaling) == (0, "proj", 2, 2.0)
    assert (second.layer, second.untouched) == (1, False)
    assert first.norm == pytest.approx(np.linalg.norm(product), rel=1e-5)
    assert first.relative_norm == pytest.approx(np.linalg.norm(product) / np.sqrt(30 * 4), rel=1e-5)
    assert first.largest == pytest.approx(np.abs(product).max(), rel=1e-5)


def test_the_effective_rank_counts_directions(write_adapter: WriteAdapter) -> None:
    one = np.zeros((5, 2), np.float32)
    one[0, 0] = 3
    equal = np.eye(5, 2, dtype=np.float32)
    inputs = np.eye(2, 6, dtype=np.float32)
    tensors = {
        f"{MODULE}.lora_A.weight": inputs,
        f"{MODULE}.lora_B.weight": one,
        "base_model.model.h.1.proj.lora_A.weight": inputs,
        "base_model.model.h.1.proj.lora_B.weight": equal,
    }

    first, second = inspect_modules(Adapter.read(write_adapter(tensors=tensors)), no_base)

    assert first.effective_rank == pytest.approx(1)
    assert second.effective_rank == pytest.approx(2)
    assert first.relative_norm is None


def test_a_module_that_learnt_nothing_is_untouched(write_adapter: WriteAdapter) -> None:
    tensors = {f"{MODULE}.lora_B.weight": np.zeros((5, 2), np.float32)}

    first, second = inspect_modules(Adapter.read(write_adapter(tensors=tensors)), base)

    assert (first.untouched, first.norm, first.effective_rank, first.largest) == (True, 0, 0, 0)
    assert not second.untouched


def test_doras_update_is_the_whole_change_of_the_weight(write_adapter: WriteAdapter) -> None:
    adapter = Adapter.read(
        write_adapter(tensors={f"{MODULE}.lora_magnitude_vector": np.ones(5, np.float32)}, use_dora=True)
    )
    factors = products_of(adapter)["h.0.proj"]
    weight = base("proj.weight")
    assert weight is not None

    first = inspect_modules(adapter, base)[0]

    assert first.norm == pytest.approx(np.linalg.norm(factors.adapted(weight) - weight), rel=1e-5)
    assert np.linalg.norm(factors.adapted(weight), axis=1) == pytest.approx(np.ones(5), rel=1e-5)


def test_layers_are_in_the_order_of_their_numbers(write_adapter: WriteAdapter) -> None:
    half = {"A": np.ones((2, 6), np.float32), "B": np.ones((5, 2), np.float32)}
    tensors = {f"base_model.model.h.10.proj.lora_{part}.weight": numbers for part, numbers in half.items()}

    assert [module.layer for module in inspect_modules(Adapter.read(write_adapter(tensors=tensors)), no_base)] == [
        0,
        1,
        10,
    ]


def test_a_parameter_that_was_trained_whole_is_compared_in_either_orientation(write_adapter: WriteAdapter) -> None:
    tensors = {
        "base_model.model.proj.weight": np.full((6, 5), 3, np.float32),
        "base_model.model.other.weight": np.ones((2, 2), np.float32),
    }

    other, proj = inspect_whole(Adapter.read(write_adapter(tensors=tensors)), base)

    assert proj.name == "proj.weight"
    assert proj.relative_norm == pytest.approx(0.5)
    assert (other.name, other.shape, other.relative_norm) == ("other.weight", [2, 2], None)
