"""Two adapters are alike as far as their updates are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from peftkit.adapters.compare import field_differences, overlaps
from peftkit.adapters.files import Adapter

WriteAdapter = Callable[..., Path]
A, B = (f"base_model.model.h.0.proj.lora_{part}.weight" for part in "AB")


def test_an_adapter_is_like_itself_whatever_its_scale(write_adapter: WriteAdapter) -> None:
    one, other = Adapter.read(write_adapter("one")), Adapter.read(write_adapter("other", lora_alpha=1))

    for module in overlaps(one, other):
        assert module.cosine == pytest.approx(1, abs=1e-5)
        assert module.input_overlap == pytest.approx(1, abs=1e-5)
        assert module.output_overlap == pytest.approx(1, abs=1e-5)


def test_updates_in_other_directions_have_nothing_in_common(write_adapter: WriteAdapter) -> None:
    first = {A: np.eye(2, 6, dtype=np.float32), B: np.eye(5, 2, dtype=np.float32)}
    second = {A: np.eye(2, 6, 2, dtype=np.float32), B: -np.eye(5, 2, dtype=np.float32)}

    module = overlaps(
        Adapter.read(write_adapter("one", tensors=first)), Adapter.read(write_adapter("other", tensors=second))
    )[0]

    assert module.input_overlap == pytest.approx(0)
    assert module.output_overlap == pytest.approx(1)
    assert module.cosine == pytest.approx(0)


def test_the_cosine_is_that_of_the_products(write_adapter: WriteAdapter) -> None:
    one, other = Adapter.read(write_adapter("one", seed=1)), Adapter.read(write_adapter("other", seed=2, rank=3))
    products = [adapter.tensors[B].array() @ adapter.tensors[A].array() for adapter in (one, other)]

    module = overlaps(one, other)[0]

    wanted = np.sum(products[0] * products[1]) / np.linalg.norm(products[0]) / np.linalg.norm(products[1])
    assert module.cosine == pytest.approx(wanted, rel=1e-4)
    assert module.ranks == (2, 3)


def test_an_update_of_nothing_has_no_direction(write_adapter: WriteAdapter) -> None:
    nothing = {B: np.zeros((5, 2), np.float32)}

    module = overlaps(Adapter.read(write_adapter("one", tensors=nothing)), Adapter.read(write_adapter("other")))[0]

    assert (module.cosine, module.input_overlap, module.output_overlap) == (None, None, None)


def test_settings_that_differ_are_named_with_both_values(runs: dict[str, Path]) -> None:
    one, other = (Adapter.read(runs[method] / "adapter") for method in ("lora", "qlora"))

    differences = {
        difference.field: (difference.first, difference.second) for difference in field_differences(one, other)
    }

    assert differences == {"method": ("lora", "qlora")}
    assert field_differences(one, one) == []


def test_settings_of_adapters_made_elsewhere_are_those_of_peft(write_adapter: WriteAdapter) -> None:
    one, other = Adapter.read(write_adapter("one")), Adapter.read(write_adapter("other", lora_alpha=9, use_dora=False))

    found = {(difference.field, difference.first, difference.second) for difference in field_differences(one, other)}

    assert found == {("adapter_config.lora_alpha", 4, 9), ("adapter_config.use_dora", None, False)}
