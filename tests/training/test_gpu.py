"""The same recipe on a GPU: precision is chosen, the loss falls, and what is saved computes the same."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.adapters.merge import merge
from peftkit.models.device import detect_hardware
from peftkit.planning.decisions import choose_precision
from peftkit.recipe.loader import load_recipe
from peftkit.runs.folder import RunFolder
from peftkit.training.arguments import products_as_before, training_arguments
from peftkit.training.run import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_every_method_trains_on_a_gpu(method: str, recipe_path: Path, tmp_path: Path) -> None:
    _, manifest = run(load_recipe(recipe_path, method=method, output=tmp_path / "run"))

    assert manifest.hardware["device"] == "cuda"
    assert manifest.metrics.perplexity is not None
    assert manifest.metrics.base_perplexity is not None
    assert manifest.metrics.perplexity < manifest.metrics.base_perplexity


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_run_that_was_stopped_on_a_gpu_goes_on_where_it_was(method: str, recipe_path: Path, tmp_path: Path) -> None:
    overrides = ["training.save_strategy=steps", "training.save_steps=1", "training.max_steps=40"]
    command = [sys.executable, "-m", "peftkit", "train", str(recipe_path), "--method", method]
    command += [word for change in overrides for word in ("--set", change)]
    _, whole = run(load_recipe(recipe_path, method=method, overrides=overrides, output=tmp_path / "whole"))

    with subprocess.Popen([*command, "--output", str(tmp_path / "run")]) as stopped:
        while stopped.poll() is None and not list((tmp_path / "run" / "checkpoints").glob("step-*")):
            time.sleep(0.01)
        stopped.terminate()
    resumed = subprocess.run([*command, "--output", str(tmp_path / "run"), "--resume"], check=False)
    found = RunFolder(tmp_path / "run").read()

    assert (stopped.returncode, resumed.returncode) == (143, 0)
    assert found.resumed[0]["step"] >= 1
    assert found.metrics.train_tokens == whole.metrics.train_tokens
    assert found.metrics.eval_loss == pytest.approx(whole.metrics.eval_loss, rel=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_packed_documents_train_on_a_gpu_with_the_attention_that_is_chosen(
    dropout: float, recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["data.packing=true", f"base.dropout={dropout}"]
    _, manifest = run(load_recipe(recipe_path, overrides=overrides, output=tmp_path / "run"))

    chosen = "varlen:" if detect_hardware().is_ampere else "sdpa:"
    assert chosen in capsys.readouterr().err
    assert manifest.data["train"]["packed"]
    assert manifest.metrics.perplexity is not None
    assert manifest.metrics.base_perplexity is not None
    assert manifest.metrics.perplexity < manifest.metrics.base_perplexity


def test_an_adapter_trained_on_a_gpu_is_merged_exactly(recipe_path: Path, tmp_path: Path) -> None:
    run(load_recipe(recipe_path, method="qlora", overrides=["precision=fp32"], output=tmp_path / "run"))

    receipt = merge([(tmp_path / "run" / "adapter", 1.0)], tmp_path / "merged")

    assert receipt.proof is not None
    assert receipt.proof.relative_error < 1e-5


def test_tf32_is_on_beside_bf16_while_training_and_exact_products_come_back(recipe_path: Path, tmp_path: Path) -> None:
    backends: Any = torch.backends
    before = backends.fp32_precision
    hardware = detect_hardware()
    precision = choose_precision("auto", hardware).choice

    with products_as_before():
        arguments = training_arguments(load_recipe(recipe_path).recipe, hardware, precision, tmp_path)
        during = backends.fp32_precision

    assert arguments.tf32 is hardware.is_ampere
    assert during == ("tf32" if hardware.is_ampere else before)
    assert backends.fp32_precision == before
