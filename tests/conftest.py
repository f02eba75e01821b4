"""What several rooms' tests share: a small base, small data, and the real command line."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# the same examples every time, so that a failure comes from a change; a busy machine is no failure
settings.register_profile("peftkit", deadline=None, derandomize=True)
settings.load_profile("peftkit")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ["PEFTKIT_CACHE"] = tempfile.mkdtemp(prefix="peftkit-tests-")
atexit.register(shutil.rmtree, os.environ["PEFTKIT_CACHE"], ignore_errors=True)

RECIPE = """\
name: small
method: lora
base:
  model: builtin:tiny-gpt2
lora: {r: 4, lora_alpha: 8, lora_dropout: 0.05}
data:
  train: {path: train.jsonl}
  validation: {path: validation.jsonl}
  format: completion
  max_length: 64
training:
  learning_rate: 3e-3
  per_device_train_batch_size: 4
  max_steps: 6
  logging_steps: 1
  eval_strategy: epoch
  save_strategy: "no"
"""


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    """A recipe beside its data, small enough to train in a second."""
    return write_recipe(tmp_path)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each method, from one recipe."""
    from peftkit.recipe.loader import load_recipe
    from peftkit.workflows.run import run

    folder = tmp_path_factory.mktemp("runs")
    path = write_recipe(folder)
    for method in ("full", "lora", "qlora"):
        run(load_recipe(path, method=method, output=folder / method))
    return {method: folder / method for method in ("full", "lora", "qlora")}


def write_recipe(tmp_path: Path) -> Path:
    """Write `small.yaml` and its data into a folder."""
    from peftkit.data.grammar import task

    for split in ("train", "validation"):
        rows = task("train" if split == "train" else "validation")[:24]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def peftkit(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The `peftkit` command in a process of its own, started in the test's folder."""

    def call(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "peftkit", *arguments]
        return subprocess.run(command, cwd=tmp_path, input=stdin, capture_output=True, text=True, check=False)

    return call
