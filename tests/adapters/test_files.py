"""An adapter is read without running anything in it, and what is none, or was changed since it was saved, is named."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file

from peftkit.adapters.files import Adapter, Record
from peftkit.errors import TargetError
from peftkit.storage import read_json, sha256_of_file, sha256_of_json

WriteAdapter = Callable[..., Path]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_numbers_of_every_type_are_read(dtype: torch.dtype, write_adapter: WriteAdapter) -> None:
    folder = write_adapter()
    tensor = torch.linspace(-2, 2, 12, dtype=dtype).reshape(2, 6)
    save_torch_file({"a": tensor}, folder / "adapter_model.safetensors")

    found = Adapter.read(folder).tensors["a"]

    assert found.shape == (2, 6)
    assert np.array_equal(found.array(), tensor.float().numpy())


def test_a_tensors_hash_tells_type_shape_and_content_apart(write_adapter: WriteAdapter) -> None:
    folder = write_adapter()
    zeros = torch.zeros(4, 4)
    variants = [zeros, torch.zeros(2, 8), zeros.to(torch.bfloat16), zeros + 1]
    save_torch_file({str(at): tensor for at, tensor in enumerate(variants)}, folder / "adapter_model.safetensors")

    assert len({tensor.sha256 for tensor in Adapter.read(folder).tensors.values()}) == 4


def test_size_and_numbers_are_counted(write_adapter: WriteAdapter) -> None:
    adapter = Adapter.read(write_adapter())

    assert adapter.parameters == 2 * (2 * 6 + 5 * 2)
    assert adapter.bytes == 4 * adapter.parameters


class Exploding:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("unpickled"),))  # type: ignore[return-value]


def test_pickled_weights_are_refused_and_never_opened(
    write_adapter: WriteAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_adapter()
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Exploding()))

    with pytest.raises(TargetError, match=r"as a pickle, adapter_model\.bin, which can run code"):
        Adapter.read(folder)

    assert not (tmp_path / "unpickled").exists()


def test_what_is_missing_or_damaged_is_told(write_adapter: WriteAdapter, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="is not an adapter"):
        Adapter.read(tmp_path)

    folder = write_adapter()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(TargetError, match=r"adapter_model\.safetensors: is damaged or incomplete"):
        Adapter.read(folder)

    weights.unlink()
    with pytest.raises(TargetError, match=r"has no adapter_model\.safetensors"):
        Adapter.read(folder)

    (folder / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(TargetError, match=r"adapter_config\.json: is damaged"):
        Adapter.read(folder)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"r": None}, "r"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern"),
        ({"rank_pattern": {"a": "b"}}, "rank_pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(
    config: dict[str, object], field: str, write_adapter: WriteAdapter
) -> None:
    with pytest.raises(TargetError, match=f"its {field} is damaged"):
        Adapter.read(write_adapter(**config))


def test_another_kind_of_adapter_is_refused(write_adapter: WriteAdapter) -> None:
    folder = write_adapter()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR"}), encoding="utf-8")

    with pytest.raises(TargetError, match="is of the kind LOKR"):
        Adapter.read(folder)


def test_integers_are_no_numbers_of_an_adapter(write_adapter: WriteAdapter) -> None:
    folder = write_adapter()
    save_torch_file({"a": torch.zeros(2, dtype=torch.int64)}, folder / "adapter_model.safetensors")

    with pytest.raises(TargetError, match="holds I64"):
        Adapter.read(folder)


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


def test_an_adapter_carries_its_fingerprint(runs: dict[str, Path]) -> None:
    folder = runs["qlora"] / "adapter"
    values = read_json(folder / "peftkit.json")
    adapter = Adapter.read(folder)

    assert set(values["base"]["files"]) == {"model.safetensors", "config.json"}
    assert values["base"]["sha256"] == sha256_of_json(values["base"]["files"])
    assert values["quantization"]["bnb_4bit_quant_type"] == "nf4"
    assert values["recipe_sha256"] == sha256_of_json(values["recipe"])
    (data,) = values["data"]["train"]["files"].items()
    assert data[1] == sha256_of_file(Path(data[0]))
    assert values["metrics"]["perplexity"] > 1
    assert values["versions"]["peft"]
    assert values["tensors"] == {name: tensor.sha256 for name, tensor in adapter.tensors.items()}
    assert values["adapter_config"] == adapter.config


def test_a_record_comes_back_as_it_was(runs: dict[str, Path]) -> None:
    for place in (runs["lora"] / "adapter", runs["full"] / "model"):
        record = Record.read(place)
        assert record is not None
        assert record.to_json() == read_json(place / "peftkit.json")


def test_a_whole_model_has_no_tensors_in_its_record(runs: dict[str, Path]) -> None:
    record = Record.read(runs["full"] / "model")

    assert record is not None
    assert (record.tensors, record.adapter_config) == (None, None)


def test_no_record_is_no_error(tmp_path: Path) -> None:
    assert Record.read(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[]", '{"recipe": {}}'])
def test_a_damaged_record_is_one(content: str, runs: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs["lora"] / "adapter", tmp_path / "adapter"))
    (folder / "peftkit.json").write_text(content, encoding="utf-8")

    with pytest.raises(TargetError, match=r"peftkit\.json: is damaged"):
        Record.read(folder)


def test_a_recipe_that_would_leave_its_folder_is_no_recipe(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs["lora"] / "adapter", tmp_path / "adapter"))
    text = (folder / "peftkit.json").read_text(encoding="utf-8")
    (folder / "peftkit.json").write_text(text.replace('"name": "small"', '"name": "../x"'), encoding="utf-8")

    with pytest.raises(TargetError, match="is damaged"):
        Record.read(folder)
