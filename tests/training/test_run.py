"""One unchanged recipe trains by every method and ends in a folder that others can open."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from peftkit.compatibility import peft_loses_biases
from peftkit.errors import RecipeError, RunError, TargetError
from peftkit.metrics import METRICS
from peftkit.recipe.loader import load_recipe
from peftkit.runs.folder import RunFolder
from peftkit.storage import folder_hashes, read_json, sha256_of_file
from peftkit.training.run import run

BIASES = pytest.mark.skipif(peft_loses_biases(), reason="this version of PEFT does not save such biases")
METHODS = ("full", "lora", "qlora")
TRANSFORMERS_ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(sys.argv[1])
assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
assert model.config.use_cache and "peft" not in sys.modules and "peftkit" not in sys.modules
"""
PEFT_ALONE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base = AutoModelForCausalLM.from_pretrained(sys.argv[2])
before = base(torch.tensor([[5, 6, 7]])).logits
model = PeftModel.from_pretrained(base, sys.argv[1])
AutoTokenizer.from_pretrained(sys.argv[1])
assert not torch.equal(model(torch.tensor([[5, 6, 7]])).logits, before)
assert "peftkit" not in sys.modules
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_tells_all_that_was_measured(method: str, runs: dict[str, Path]) -> None:
    manifest = RunFolder(runs[method]).read()

    metrics = manifest.metrics
    assert (manifest.status, manifest.method, manifest.error) == ("finished", method, None)
    assert metrics.perplexity is not None
    assert metrics.base_perplexity is not None
    assert metrics.perplexity < metrics.base_perplexity / 2
    assert metrics.perplexity == pytest.approx(math.exp(metrics.eval_loss or 0.0))
    assert metrics.train_tokens == manifest.data["train"]["tokens"]  # six steps of four rows are one epoch
    assert (metrics.trainable_parameters == metrics.total_parameters) == (method == "full")
    assert min(metrics.tokens_per_second or 0, metrics.peak_memory_bytes or 0, metrics.train_seconds or 0) > 0
    assert manifest.data["validation"]["label_tokens"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_the_outputs_hashes_are_those_of_the_files(method: str, runs: dict[str, Path]) -> None:
    outputs = RunFolder(runs[method]).read().outputs

    assert outputs
    assert {name: sha256_of_file(runs[method] / name) for name in outputs} == outputs


def test_a_full_model_opens_with_transformers_alone(runs: dict[str, Path]) -> None:
    done = python(TRANSFORMERS_ALONE, runs["full"] / "model")

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_opens_with_peft_alone(method: str, runs: dict[str, Path]) -> None:
    import peftkit

    base = Path(peftkit.__file__).parent / "assets" / "tiny-gpt2"

    done = python(PEFT_ALONE, runs[method] / "adapter", base)

    assert done.returncode == 0, done.stderr


def test_the_curve_falls_and_has_a_line_for_each_step(runs: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in (runs["lora"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert [line["step"] for line in lines if "perplexity" in line] == [0, 6]


def test_the_stored_recipe_trains_the_same_bytes_again(runs: dict[str, Path], tmp_path: Path) -> None:
    run(load_recipe(runs["lora"] / "recipe.yaml", output=tmp_path / "again"))

    first, again = (folder_hashes(folder / "adapter") for folder in (runs["lora"], tmp_path / "again"))
    assert first["adapter_model.safetensors"] == again["adapter_model.safetensors"]
    assert first["adapter_config.json"] == again["adapter_config.json"]


def test_a_card_says_how_the_output_was_made(runs: dict[str, Path]) -> None:
    card = (runs["qlora"] / "adapter" / "README.md").read_text(encoding="utf-8")

    perplexity = RunFolder(runs["qlora"]).read().metrics.perplexity
    assert "| method | qlora |" in card
    assert "4 bits, NF4" in card
    assert f"| perplexity | {METRICS['perplexity'].text(perplexity)} |" in card


def test_a_place_in_use_is_refused_before_anything_is_loaded(runs: dict[str, Path], recipe_path: Path) -> None:
    before = folder_hashes(runs["lora"])

    with pytest.raises(TargetError, match="never writes over a run"):
        run(load_recipe(recipe_path, output=runs["lora"]))

    assert folder_hashes(runs["lora"]) == before


def test_a_loss_that_is_not_finite_fails_the_run_and_is_written_down(recipe_path: Path, tmp_path: Path) -> None:
    changes = ["training.learning_rate=1e30", "training.max_grad_norm=0", "training.warmup_steps=0"]
    file = load_recipe(recipe_path, method="full", overrides=changes, output=tmp_path / "run")

    with pytest.raises(RunError, match="not a finite number"):
        run(file)

    manifest = RunFolder(tmp_path / "run").read()
    assert manifest.status == "failed"
    assert "not a finite number" in (manifest.error or "")
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_that_moves_nothing_is_an_error(method: str, recipe_path: Path, tmp_path: Path) -> None:
    # the first step of a warm-up has a learning rate of zero
    changes = ["training.max_steps=1", "training.warmup_steps=10", "training.weight_decay=0"]
    file = load_recipe(recipe_path, method=method, overrides=changes, output=tmp_path / "run")

    with pytest.raises(RunError, match="no weight has moved"):
        run(file)


def test_a_new_base_is_made_with_a_tokenizer_of_its_own(recipe_path: Path, tmp_path: Path) -> None:
    changes = ["base={init: {n_layer: 2, n_head: 2, n_embd: 32, vocab_size: 300, n_positions: 64}, dropout: 0.1}"]
    file = load_recipe(recipe_path, method="full", overrides=changes, output=tmp_path / "run")

    run(file)

    config = read_json(tmp_path / "run" / "model" / "config.json")
    assert (config["n_layer"], config["n_head"], config["n_embd"], config["vocab_size"]) == (2, 2, 32, 300)
    assert config["resid_pdrop"] == config["embd_pdrop"] == config["attn_pdrop"] == 0.1
    assert python(TRANSFORMERS_ALONE, tmp_path / "run" / "model").returncode == 0


def test_a_vocabulary_that_the_text_cannot_fill_is_an_error(recipe_path: Path, tmp_path: Path) -> None:
    changes = ["base={init: {n_layer: 1, n_head: 1, n_embd: 8, vocab_size: 9000, n_positions: 64}}"]

    with pytest.raises(RecipeError, match=r"base\.init\.vocab_size: the training text gives \d+ tokens, not 9000"):
        run(load_recipe(recipe_path, method="full", overrides=changes, output=tmp_path / "run"))


@pytest.mark.parametrize(
    "changes",
    [
        ["data={train: {path: validation.jsonl}, columns: {}, format: completion, packing: true, max_length: 64}"],
        ["training.optim=adafactor", "training.gradient_accumulation_steps=2"],
        ["training.activation_checkpointing=true"],
        ["quantization.load_in_4bit=false", "quantization.load_in_8bit=true", "method=qlora"],
        ["quantization.bnb_4bit_quant_type=fp4", "quantization.bnb_4bit_use_double_quant=false", "method=qlora"],
        ["lora.target_modules=all-linear", "lora.use_rslora=true"],
        pytest.param(["lora.use_dora=true", "lora.bias=lora_only"], marks=BIASES),
        ["training.label_smoothing_factor=0.1", "training.lr_scheduler_type=cosine"],
        ["training.save_strategy=steps", "training.save_steps=3"],
    ],
    ids=lambda changes: changes[0].partition("=")[0] + "…",
)
def test_other_hyperparameters_train_too(
    changes: list[str], recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if changes[0].startswith("data="):
        changes = [*changes, "training.eval_strategy=no"]
    changes = [*changes, "training.max_steps=3"]

    folder, manifest = run(load_recipe(recipe_path, overrides=changes, output=tmp_path / "run"))

    assert manifest.status == "finished"
    assert (folder.adapter / "adapter_model.safetensors").is_file()


def test_what_is_saved_of_an_adapter_is_the_adapter_alone(runs: dict[str, Path]) -> None:
    files = {path.name for path in (runs["qlora"] / "adapter").iterdir()}

    assert files == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "generation_config.json", "manifest.json",
        "peftkit.json", "sample.json", "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
