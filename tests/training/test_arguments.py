"""Every method trains with the same arguments, made from the recipe and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.errors import FieldError
from peftkit.planning.devices import device_named
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Recipe
from peftkit.training.arguments import products_as_before, training_arguments

CPU, T4 = device_named("cpu"), device_named("t4")


def recipe_of(path: Path, method: str = "lora", *overrides: str) -> Recipe:
    return load_recipe(path, method=method, overrides=overrides).recipe


def test_all_methods_have_the_same_arguments(recipe_path: Path, tmp_path: Path) -> None:
    built = [
        training_arguments(recipe_of(recipe_path, method), CPU, "fp32", tmp_path).to_dict()
        for method in ("full", "lora", "qlora")
    ]

    assert built[0] == built[1] == built[2]


def test_what_the_recipe_says_arrives(recipe_path: Path, tmp_path: Path) -> None:
    recipe = recipe_of(
        recipe_path, "lora", "training.warmup_steps=500", "training.optim=adafactor", "training.neftune_noise_alpha=5.0"
    )

    arguments = training_arguments(recipe, CPU, "fp32", tmp_path)

    assert (arguments.learning_rate, arguments.warmup_steps, arguments.max_grad_norm) == (3e-3, 500, 1.0)
    assert (arguments.optim, arguments.neftune_noise_alpha) == ("adafactor", 5.0)
    assert arguments.logging_nan_inf_filter is False
    assert not arguments.bf16
    assert not arguments.fp16
    assert arguments.report_to == []


def test_training_takes_the_decisions_that_are_printed(recipe_path: Path, tmp_path: Path) -> None:
    built = [training_arguments(recipe_of(recipe_path), device, "fp32", tmp_path) for device in (CPU, T4)]
    own = training_arguments(
        recipe_of(recipe_path, "lora", "training.dataloader_pin_memory=false", "training.dataloader_num_workers=1"),
        T4,
        "fp32",
        tmp_path,
    )

    assert [arguments.dataloader_pin_memory for arguments in (*built, own)] == [False, True, False]
    assert [arguments.dataloader_num_workers for arguments in (*built, own)] == [0, 0, 1]
    assert [arguments.tf32 for arguments in (*built, own)] == [False, False, False]
    assert [arguments.use_cpu for arguments in (*built, own)] == [True, False, False]


def test_a_run_leaves_the_products_of_its_process_as_they_were() -> None:
    backends: Any = torch.backends
    before = backends.fp32_precision

    with products_as_before():
        backends.fp32_precision = "tf32"

    assert backends.fp32_precision == before


def test_a_combination_that_transformers_refuses_is_an_error_about_training(recipe_path: Path, tmp_path: Path) -> None:
    recipe = recipe_of(
        recipe_path, "lora", "training.save_strategy=steps", "training.save_steps=0.5", "training.eval_strategy=no"
    )
    bad = recipe.model_copy(
        update={
            "training": recipe.training.model_copy(update={"load_best_model_at_end": True, "save_strategy": "epoch"})
        }
    )

    with pytest.raises(FieldError, match="training: Transformers refuses it"):
        training_arguments(bad, CPU, "fp32", tmp_path)
