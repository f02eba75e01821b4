"""The record beside an adapter holds all that it must be, and comes back as it was written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from peftkit.adapters.files import Adapter, Record
from peftkit.errors import TargetError
from peftkit.storage import read_json, sha256_of_file, sha256_of_json


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
