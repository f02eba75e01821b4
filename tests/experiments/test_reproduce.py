"""A run that is trained again comes to the same weights, or it is told that it did not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peftkit.errors import ChangedError, TargetError
from peftkit.experiments.reproduce import reproduce
from peftkit.recipe.loader import load_recipe
from peftkit.training.run import run


def manifest_of(folder: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return loaded


def test_an_unfinished_run_cannot_be_come_to_again(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs["lora"], folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest_of(folder), "status": "stopped"}), encoding="utf-8")

    with pytest.raises(TargetError, match="is stopped"):
        reproduce(folder, tmp_path / "again")


def test_changed_data_is_told_before_anything_is_trained(recipe_path: Path, tmp_path: Path) -> None:
    run(
        load_recipe(
            recipe_path, output=tmp_path / "run", overrides=["training.max_steps=2", "training.learning_rate=0.1"]
        )
    )
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "one", "completion": "more"}\n')

    with pytest.raises(ChangedError) as caught:
        reproduce(tmp_path / "run", tmp_path / "again")

    assert "data.train" in " ".join(caught.value.lines())
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_stored_recipe_comes_to_the_same_bits(method: str, runs: dict[str, Path], tmp_path: Path) -> None:
    found = reproduce(runs[method], tmp_path / "again")

    assert (found.same_weights, found.largest_difference, found.changes) == (True, 0.0, [])
    assert found.eval_loss == found.eval_loss_again
    assert found.agrees


@pytest.mark.slow
def test_other_weights_are_told_with_how_far_the_loss_is(runs: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs["lora"], other)
    recipe = other / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("max_steps: 6", "max_steps: 40"), encoding="utf-8")

    found = reproduce(other, tmp_path / "again")

    assert not found.agrees
    assert found.difference is not None
    assert found.difference.high < 0
    assert found.largest_difference > 0
