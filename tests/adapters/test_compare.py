"""Adapters are verified against their records and bases, and compared with each other as far as their updates are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from peftkit.adapters.compare import check_adapter, field_differences, overlaps
from peftkit.adapters.files import Adapter, GivenBase

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


NAMES = ["files", "values", "settings", "tensors", "training", "base", "fit", "effect"]


@pytest.fixture
def adapter(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["qlora"] / "adapter", tmp_path / "adapter"))


def passed(folder: Path, given: GivenBase | None = None) -> dict[str, bool | None]:
    checks = check_adapter(folder, given) if given else check_adapter(folder)
    return {check.name: check.passed for check in checks}


def rewrite(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    changed = {name: change(tensor) if "lora_B" in name else tensor for name, tensor in tensors.items()}
    save_file(changed, folder / "adapter_model.safetensors")


def edit(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    change(values)
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def test_a_sound_adapter_passes_every_check(adapter: Path) -> None:
    checks = check_adapter(adapter)

    assert {check.name: check.passed for check in checks} == dict.fromkeys(NAMES, True)
    assert "logits move by" in checks[-1].detail
    assert "perplexity" in checks[-1].detail


def test_notes_in_the_card_are_no_fault(adapter: Path) -> None:
    (adapter / "README.md").write_text("mine", encoding="utf-8")

    assert passed(adapter)["files"] is True


@pytest.mark.parametrize(
    ("damage", "failing"),
    [
        (lambda folder: (folder / "tokenizer.json").write_text("{}", encoding="utf-8"), {"files"}),
        (lambda folder: rewrite(folder, lambda b: b * float("nan")), {"files", "values", "tensors"}),
        (lambda folder: rewrite(folder, lambda b: b * 2), {"files", "tensors"}),
        (lambda folder: rewrite(folder, torch.zeros_like), {"files", "tensors", "training"}),
        (lambda folder: edit(folder, "adapter_config.json", lambda v: v.update(lora_alpha=99)), {"files", "settings"}),
        (lambda folder: edit(folder, "peftkit.json", lambda v: v["base"].update(sha256="0" * 64)), {"files"}),
    ],
    ids=["tokenizer", "nan", "values", "zeros", "alpha", "record"],
)
def test_damage_is_found_and_nothing_that_rests_on_it_is_tried(
    damage: Callable[[Path], object], failing: set[str], adapter: Path
) -> None:
    damage(adapter)

    found = passed(adapter)

    assert {name for name, sound in found.items() if sound is False} == failing
    assert "effect" not in found


def test_another_base_is_found(adapter: Path) -> None:
    (adapter / "manifest.json").unlink()
    edit(adapter, "peftkit.json", lambda values: values["base"].update(sha256="0" * 64))

    assert passed(adapter) == {
        "files": None, "values": True, "settings": True, "tensors": True, "training": True, "base": False,
    }  # fmt: skip


def test_of_a_foreign_adapter_the_unknown_is_told_from_the_wrong(adapter: Path) -> None:
    (adapter / "peftkit.json").unlink()
    (adapter / "manifest.json").unlink()

    unknown = {"files": None, "settings": None, "tensors": None, "base": None}
    assert passed(adapter) == {"values": True, "training": True, **unknown}
    assert passed(adapter, GivenBase("builtin:tiny-gpt2")) == {
        "values": True, "training": True, "fit": True, "effect": True, **unknown,
    }  # fmt: skip


def test_an_adapter_without_effect_is_found_even_if_it_was_trained(adapter: Path) -> None:
    (adapter / "peftkit.json").unlink()
    (adapter / "manifest.json").unlink()
    tensors = load_file(adapter / "adapter_model.safetensors")
    none = {name: torch.zeros_like(tensor) if "lora_A" in name else tensor for name, tensor in tensors.items()}
    save_file(none, adapter / "adapter_model.safetensors")

    found = passed(adapter, GivenBase("builtin:tiny-gpt2"))

    assert (found["training"], found["fit"], found["effect"]) == (True, True, False)
