"""A run on packed documents by attention over variable lengths has the losses of one by sdpa."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftkit.models.attention_kernels import VARLEN
from peftkit.recipe.loader import load_recipe
from peftkit.training.prepare import prepare_run
from peftkit.training.train import train


def losses(recipe_path: Path, folder: Path, method: str, attention: str) -> list[float]:
    """Of training and evaluation, in the order of the steps."""
    overrides = ["data.packing=true", "base.dropout=0.0", "lora.lora_dropout=0.0"]
    run = prepare_run(load_recipe(recipe_path, method=method, overrides=overrides, output=folder))
    model = run.load()
    base = model.get_base_model() if method == "lora" else model
    base.set_attn_implementation(attention)
    with run.folder.created(run.file.resolved_yaml(), run.manifest):
        train(model, run)
    rows = [json.loads(line) for line in run.folder.metrics.read_text(encoding="utf-8").splitlines()]
    return [row[name] for row in rows for name in ("loss", "eval_loss") if name in row]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_packed_documents_train_the_same_by_either_attention(
    method: str, recipe_path: Path, tmp_path: Path, varlen_on_cpu: list[dict[str, Any]]
) -> None:
    expected = losses(recipe_path, tmp_path / "sdpa", method, "sdpa")
    found = losses(recipe_path, tmp_path / "varlen", method, VARLEN)

    assert len(varlen_on_cpu) > 0
    assert len(found) >= 6
    assert found == pytest.approx(expected, rel=1e-4)
