"""A merged model computes what its adapter computes, and says so only after another process has shown it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftkit.errors import RunError, TargetError
from peftkit.merging.merge import merge_adapter
from peftkit.merging.proof import logits_in_fresh_process, logits_of, probe_ids, relative_error
from peftkit.models.target import open_adapter
from peftkit.recipe.loader import load_recipe
from peftkit.storage import read_json
from peftkit.workflows.run import run

ALONE = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    save_file({"logits": model(load_file(sys.argv[2])["ids"]).logits}, sys.argv[3])
assert not {"peft", "bitsandbytes", "peftkit"} & set(sys.modules)
"""


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_merged_model_gives_the_adapters_logits_without_peft_and_bitsandbytes(
    method: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    adapter = runs[method] / "adapter"
    receipt = merge_adapter(adapter, tmp_path / "merged")
    ids = torch.randint(0, 1024, (2, 50), generator=torch.Generator().manual_seed(3))
    save_file({"ids": ids}, tmp_path / "ids.safetensors")

    command = [sys.executable, "-c", ALONE, "merged", "ids.safetensors", "logits.safetensors"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    expected = logits_of(open_adapter(adapter, "cpu")[0], ids)
    assert relative_error(load_file(tmp_path / "logits.safetensors")["logits"], expected) < 1e-5
    assert receipt.relative_error < 1e-5


@pytest.mark.parametrize(
    ("quantization", "bound"),
    [
        ("{bnb_4bit_quant_type: fp4}", 1e-5),
        ("{bnb_4bit_use_double_quant: false}", 1e-5),
        ("{load_in_8bit: true}", 0.1),
    ],
)
def test_every_way_to_quantise_can_be_merged(
    quantization: str, bound: float, recipe_path: Path, tmp_path: Path
) -> None:
    changes = [f"quantization={quantization}", "lora.target_modules=all-linear", "training.max_steps=3"]
    run(load_recipe(recipe_path, method="qlora", overrides=changes, output=tmp_path / "run"))

    receipt = merge_adapter(tmp_path / "run" / "adapter", tmp_path / "merged")

    assert receipt.relative_error < bound


def test_half_precision_is_nearly_the_same_and_half_the_size(runs: dict[str, Path], tmp_path: Path) -> None:
    adapter = runs["qlora"] / "adapter"
    whole = merge_adapter(adapter, tmp_path / "whole")
    half = merge_adapter(adapter, tmp_path / "half", dtype="float16")

    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert whole.relative_error < half.relative_error < 5e-3
    assert sizes[1] < 0.52 * sizes[0]


def test_a_merge_onto_the_original_base_promises_nothing(runs: dict[str, Path], tmp_path: Path) -> None:
    receipt = merge_adapter(runs["qlora"] / "adapter", tmp_path / "merged", onto="original")

    assert receipt.tolerance is None
    assert receipt.relative_error > 1e-3


def test_the_receipt_lies_beside_the_model(runs: dict[str, Path], tmp_path: Path) -> None:
    receipt = merge_adapter(runs["lora"] / "adapter", tmp_path / "merged")

    stored = read_json(tmp_path / "merged" / "merge.json")
    assert stored["relative_error"] == receipt.relative_error
    assert stored["base"]["model"] == "builtin:tiny-gpt2"
    assert "adapter_model.safetensors" in stored["adapter_files"]


@pytest.mark.parametrize("place", ["", "inner"])
def test_the_adapters_own_folder_is_no_place_for_the_model(place: str, runs: dict[str, Path]) -> None:
    adapter = runs["lora"] / "adapter"

    with pytest.raises(TargetError, match="applied a second time"):
        merge_adapter(adapter, adapter / place)


def test_a_folder_in_use_is_left_alone(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").touch()

    with pytest.raises(TargetError, match="not empty"):
        merge_adapter(runs["lora"] / "adapter", tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def damaged(adapter: Path, place: Path, change: str) -> Path:
    """A copy of an adapter, with something wrong in it."""
    place.mkdir()
    for path in adapter.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    weights = load_file(place / "adapter_model.safetensors")
    name = next(name for name in sorted(weights) if "lora_B" in name)
    if change == "missing":
        del weights[name]
    elif change == "nan":
        weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, place / "adapter_model.safetensors")
    if change == "truncated":
        content = (place / "adapter_model.safetensors").read_bytes()
        (place / "adapter_model.safetensors").write_bytes(content[: len(content) // 2])
    return place


@pytest.mark.parametrize("change", ["missing", "truncated", "nan"])
def test_a_damaged_adapter_is_never_merged(change: str, runs: dict[str, Path], tmp_path: Path) -> None:
    adapter = damaged(runs["lora"] / "adapter", tmp_path / "adapter", change)

    with pytest.raises((TargetError, RunError)):
        merge_adapter(adapter, tmp_path / "merged")

    assert not (tmp_path / "merged").exists()


def test_a_model_that_cannot_be_opened_is_told_by_the_fresh_process(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a fresh process cannot open the model"):
        logits_in_fresh_process(tmp_path, probe_ids(100))
