"""A run on packed documents by attention over variable lengths has the losses of one by sdpa."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peftkit.data.grammar import corpus
from peftkit.errors import RecipeError
from peftkit.models.attention_kernels import VARLEN
from peftkit.recipe.loader import load_recipe
from peftkit.training.plan import plan
from peftkit.training.prepare import prepare_run
from peftkit.training.run import RunOptions, run
from peftkit.training.train import train
from tests import zoo


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


def test_documents_share_no_row_where_an_architecture_mixes_them_unless_packing_is_set(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.make("opt", tmp_path / "base")
    (tmp_path / "text.txt").write_text("\n".join(corpus("train")[:40]) + "\n", encoding="utf-8")
    data = f"data={{train: {{path: {tmp_path / 'text.txt'}}}, format: text, max_length: 256}}"
    overrides = [
        data,
        f"base.model={tmp_path / 'base'}",
        "training.max_steps=1",
        "training.eval_strategy=no",
        "training.save_strategy=epoch",
    ]

    with pytest.raises(RecipeError, match="lets packed documents see each other"):
        run(load_recipe(recipe_path, overrides=[*overrides, "data.packing=true"], output=tmp_path / "refused"))
    file = load_recipe(recipe_path, overrides=overrides, output=tmp_path / "run")
    planned = plan(file, seconds=0.1)
    folder, manifest = run(file)
    folder.write(replace(manifest, status="failed"))
    _, resumed = run(file, RunOptions(resume=True))

    assert not (tmp_path / "refused").exists()
    assert "The recipe does not set data.packing, so each row has one document." in capsys.readouterr().err
    assert planned.sequences == manifest.data["train"]["sequences"] == 40
    assert load_recipe(folder.recipe).recipe.data.packing is False
    assert resumed.status == "finished"
