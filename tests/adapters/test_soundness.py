"""An adapter that was changed after it was saved is told apart, with what was changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from peftkit.adapters.files import Adapter
from peftkit.errors import TargetError

WriteAdapter = Callable[..., Path]
B = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"


@pytest.fixture
def trained(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["lora"] / "adapter", tmp_path / "adapter"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_an_untouched_adapter_is_sound(trained: Path) -> None:
    adapter = Adapter.read(trained)

    adapter.check_sound()

    assert (adapter.config_changes, adapter.tensor_changes, adapter.not_finite) == ([], [], [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(B), f"{B} is missing"),
        (lambda tensors: tensors.update(more=tensors[B]), "more is one too many"),
        (lambda tensors: tensors.update({B: tensors[B] * 2}), f"{B} has other values"),
        (lambda tensors: tensors.update({B: tensors[B][:, :2].copy()}), f"{B} has other values or another shape"),
        (lambda tensors: tensors.update({B: tensors[B] * np.float32("nan")}), "that are not finite"),
    ],
    ids=["missing", "extra", "values", "shape", "nan"],
)
def test_changed_tensors_are_named(change: Callable[[dict[str, Any]], object], words: str, trained: Path) -> None:
    rewrite(trained, change)

    with pytest.raises(TargetError, match=words):
        Adapter.read(trained).check_sound()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("lora_alpha", 32, "lora_alpha is 32, was 8"),
        ("base_model_name_or_path", "/elsewhere", "base_model_name_or_path is '/elsewhere', was 'builtin:tiny-gpt2'"),
        ("use_rslora", True, "use_rslora is True, was False"),
        ("extra", 1, "extra is 1, was not there"),
    ],
)
def test_edited_settings_are_named(field: str, value: object, words: str, trained: Path) -> None:
    place = trained / "adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text(encoding="utf-8")) | {field: value}), encoding="utf-8")

    with pytest.raises(TargetError, match=words):
        Adapter.read(trained).check_sound()


def test_an_adapter_without_a_record_is_sound_as_it_is(write_adapter: WriteAdapter) -> None:
    adapter = Adapter.read(write_adapter())

    adapter.check_sound()

    assert (adapter.config_changes, adapter.tensor_changes) == ([], [])


def test_many_changes_are_counted(trained: Path) -> None:
    rewrite(trained, lambda tensors: [tensors.update({name: tensor * 2}) for name, tensor in list(tensors.items())])

    with pytest.raises(TargetError, match="and 5 more"):
        Adapter.read(trained).check_sound()
