"""What a folder holds is told by its files, and opened only on what it belongs on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peftkit.adapters.target import find_adapter, find_target, open_target
from peftkit.errors import TargetError


@pytest.mark.parametrize(
    ("place", "kind"), [("full", "model"), ("full/model", "model"), ("lora", "adapter"), ("qlora/adapter", "adapter")]
)
def test_runs_adapters_and_models_are_told_apart(place: str, kind: str, runs: dict[str, Path]) -> None:
    target = find_target(str(runs["full"].parent / place))

    assert target.kind == kind
    assert target.recipe is not None
    assert target.recipe.name == "small"


def test_any_other_name_is_a_models() -> None:
    assert find_target("gpt2").kind == "model"
    assert find_target("builtin:tiny-gpt2").recipe is None


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all"])
def test_a_path_that_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(TargetError, match="there is no such folder"):
        find_target(name)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="holds neither a run, an adapter nor a model"):
        find_target(str(tmp_path))


def test_a_model_is_no_adapter(runs: dict[str, Path]) -> None:
    with pytest.raises(TargetError, match="is not an adapter"):
        find_adapter(runs["full"])


def test_an_adapter_is_not_put_on_another_base(runs: dict[str, Path], tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(runs["lora"] / "adapter", tmp_path / "adapter"))
    record = json.loads((adapter / "peftkit.json").read_text(encoding="utf-8"))
    record["base"]["sha256"] = "0" * 64
    (adapter / "peftkit.json").write_text(json.dumps(record), encoding="utf-8")

    with pytest.raises(TargetError, match="was trained on another builtin:tiny-gpt2"):
        open_target(find_target(str(adapter)), "cpu")


@pytest.mark.parametrize("content", ["", "{", '{"recipe": {}}'])
def test_a_damaged_record_is_an_error(content: str, runs: dict[str, Path], tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(runs["lora"] / "adapter", tmp_path / "adapter"))
    (adapter / "peftkit.json").write_text(content, encoding="utf-8")

    with pytest.raises(TargetError, match="damaged"):
        find_target(str(adapter))
