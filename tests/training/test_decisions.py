"""A plan tells the decisions that training takes; a recipe that the machine cannot follow is refused at its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.errors import RecipeError
from peftkit.models.device import detect_hardware
from peftkit.recipe.loader import load_recipe
from peftkit.training.arguments import training_arguments
from peftkit.training.plan import plan
from peftkit.training.prepare import prepare_run


def test_a_plan_tells_the_decisions_that_training_takes(recipe_path: Path, tmp_path: Path) -> None:
    file = load_recipe(recipe_path, overrides=["training.dataloader_num_workers=1"])

    planned = plan(file, seconds=None)

    arguments = training_arguments(file.recipe, detect_hardware(), "fp32", tmp_path)
    decisions = {decision.name: decision for decision in planned.decisions}
    assert decisions["workers"].reason == "the recipe sets training.dataloader_num_workers"
    assert decisions["workers"].choice == arguments.dataloader_num_workers == 1
    assert decisions["pinned memory"].choice == arguments.dataloader_pin_memory
    assert decisions["optimizer"].choice == arguments.optim
    assert decisions["attention"].choice == ("sdpa",)  # its documents do not share rows
    assert " of " in decisions["checkpointing"].reason  # with the figures of this recipe's step


@pytest.mark.skipif(detect_hardware().is_ampere, reason="this machine has TF32")
def test_what_the_machine_cannot_do_is_refused_at_its_line(recipe_path: Path) -> None:
    text = recipe_path.read_text(encoding="utf-8").replace("training:\n", "training:\n  tf32: true\n")
    recipe_path.write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError, match=r"small\.yaml:12: training\.tf32: .* has no TF32"):
        prepare_run(load_recipe(recipe_path))
