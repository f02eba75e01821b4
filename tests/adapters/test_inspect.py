"""The figures of an adapter's updates are those of the updates themselves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from peftkit.adapters.combine import products_of
from peftkit.adapters.files import Adapter, Floats
from peftkit.adapters.inspect import ModuleUpdate, inspect_modules, inspect_whole, list_adapters, plot_updates
from peftkit.errors import InputError, TargetError

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


def test_adapters_are_found_below_a_folder_with_what_is_known_of_them(runs: dict[str, Path], tmp_path: Path) -> None:
    for method in ("full", "lora"):
        shutil.copytree(runs[method], tmp_path / method)
    shutil.copytree(runs["lora"] / "adapter", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "peftkit.json").unlink()
    shutil.copytree(runs["lora"] / "adapter", tmp_path / ".hidden.part")
    shutil.copytree(runs["lora"] / "adapter", tmp_path / "torn")
    (tmp_path / "torn" / "adapter_model.safetensors").write_bytes(b"")

    elsewhere, lora, torn = list_adapters(tmp_path)

    assert lora.adapter == str(tmp_path / "lora")
    assert (lora.base, lora.method, lora.ranks, lora.targets) == ("builtin:tiny-gpt2", "lora", [4], ["attn.c_attn"])
    assert lora.bytes > 10_000
    assert lora.perplexity is not None
    assert lora.base_perplexity is not None
    assert (elsewhere.base, elsewhere.method, elsewhere.perplexity) == ("builtin:tiny-gpt2", None, None)
    assert torn.fault == "is damaged or incomplete."


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert list_adapters(tmp_path) == []
    with pytest.raises(TargetError, match="no such folder"):
        list_adapters(tmp_path / "nowhere")


def update(layer: int | None, target: str, relative_norm: float | None) -> ModuleUpdate:
    return ModuleUpdate(f"h.{layer}.{target}", layer, target, 4, 2.0, 1.5, relative_norm, 3.2, 0.1, False)


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_drawn(suffix: str, begins: bytes, tmp_path: Path) -> None:
    place = tmp_path / f"updates.{suffix}"

    plot_updates([update(0, "q", 0.1), update(1, "q", 0.2), update(1, "v", 0.3), update(None, "head", 0.1)], "a", place)

    assert place.read_bytes().startswith(begins)


def test_the_numbers_are_in_it(tmp_path: Path) -> None:
    relative, absolute = tmp_path / "relative.svg", tmp_path / "absolute.svg"

    plot_updates([update(0, "q", 0.123), update(1, "q", 0.2)], "title", relative)
    plot_updates([update(0, "q", None), update(1, "q", 0.2)], "title", absolute)

    assert "<!-- 0.123 -->" in relative.read_text(encoding="utf-8")
    assert "<!-- 1.500 -->" in absolute.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["updates.txt", "updates", "nowhere/updates.png"])
def test_a_place_that_is_none_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no place for a picture"):
        plot_updates([update(0, "q", 0.1)], "a", tmp_path / name)
