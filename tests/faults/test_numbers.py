"""Numbers that went wrong end a run or are left out of it, and are never taken for a result."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import peftkit

BROKEN = 60
"""The position from which a base says NaN: only rows that reach it are hurt."""


@pytest.fixture
def broken(work: Any) -> Any:
    """A folder whose base breaks on what stands in line 7 of the training data, and on nothing else."""
    base = work.path / "base"
    shutil.copytree(Path(peftkit.__file__).parent / "assets" / "tiny-gpt2", base)
    weights = load_file(base / "model.safetensors")
    (position,) = (name for name in weights if name.endswith("wpe.weight"))
    weights[position][BROKEN:] = math.nan
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    for name in ("train.jsonl", "validation.jsonl"):
        word = name.partition(".")[0]
        rows = [{"prompt": f"{word}: {number}", "completion": f" {number}"} for number in range(32)]
        if name == "train.jsonl":
            rows[6] = {"prompt": "copy: a", "completion": " one two three" * BROKEN}
        (work.path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = work.path / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8").replace("builtin:tiny-gpt2", str(base))
    recipe.write_text(text, encoding="utf-8")
    return work


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(method, marks=pytest.mark.faults) for method in ("qlora", "full"))]
)
def test_a_loss_that_is_no_number_stops_within_a_step_and_names_the_row(method: str, broken: Any) -> None:
    status, log = broken.train("run", "--method", method, "--set", "training.save_strategy=no")

    told = log.splitlines()[-1]
    assert status == 1, log
    assert told.startswith("error: training: the loss is not a finite number at step 1, in the row ")
    assert f"{broken.path / 'train.jsonl'}:7" in told
    assert "train.jsonl:6" not in told
    assert broken.manifest("run")["status"] == "failed"
    assert not (broken.path / "run" / "adapter").exists()
    assert "NaN" not in (broken.path / "run" / "metrics.jsonl").read_text(encoding="utf-8")


@pytest.mark.faults
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_step_that_breaks_is_skipped_and_counted_where_the_recipe_says_so(method: str, broken: Any) -> None:
    status, log = broken.train("run", "--method", method, "--set", "on_nonfinite=skip")

    assert status == 0, log
    assert broken.manifest("run")["metrics"]["skipped_steps"] == 3  # one in each epoch
    assert log.count("the step is skipped") == 3
    assert len([line for line in broken.manifest("run")["warnings"] if "train.jsonl:7" in line]) == 3
    assert "3 steps were skipped" in log


@pytest.mark.faults
def test_steps_that_were_skipped_are_counted_over_a_stop(broken: Any) -> None:
    assert broken.train("whole", "--set", "on_nonfinite=skip")[0] == 0
    broken.stop("run", "--set", "on_nonfinite=skip")

    status, log = broken.train("run", "--set", "on_nonfinite=skip", "--resume")

    assert status == 0, log
    assert broken.manifest("run")["metrics"]["skipped_steps"] == 3
    assert broken.result("run") == broken.result("whole")


def test_an_adapter_without_effect_is_no_result(work: Any) -> None:
    status, log = work.train("run", "--set", "lora.lora_alpha=1e-30")

    assert status == 1, log
    assert "the adapter has no effect: with it and without it, the model computes the same" in log
    assert work.manifest("run")["status"] == "failed"
    assert not (work.path / "run" / "adapter").exists()


@pytest.mark.faults
def test_a_learning_rate_that_is_too_high_is_told(work: Any) -> None:
    status, log = work.train("run", "--method", "full", "--set", "training.learning_rate=1e4")

    assert status == 1, log
    assert "is not a finite number" in log
    assert work.manifest("run")["status"] == "failed"
