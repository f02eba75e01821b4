"""Only what can be done with parts of the weights is done with them; anything else is refused with what would do."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.errors import FieldError
from peftkit.planning.decisions import ChosenPrecision
from peftkit.planning.processes import check_sharding, is_sharded
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Recipe


def sharded(path: Path, *changes: str) -> Recipe:
    return load_recipe(path, overrides=("training.fsdp=true", *changes)).recipe


@pytest.mark.parametrize(("fsdp", "processes", "expected"), [(True, 2, True), (True, 1, False), (False, 2, False)])
def test_weights_are_spread_over_several_processes_if_the_recipe_says_so(
    fsdp: bool, processes: int, expected: bool, recipe_path: Path
) -> None:
    recipe = load_recipe(recipe_path, overrides=[f"training.fsdp={str(fsdp).lower()}"]).recipe

    assert is_sharded(recipe, processes) is expected


@pytest.mark.parametrize("change", ["method=full", "method=lora", "training.optim=sgd"])
def test_every_weight_and_adapters_can_be_sharded(change: str, recipe_path: Path) -> None:
    check_sharding(sharded(recipe_path, change), 2, "bf16")


@pytest.mark.parametrize(
    ("change", "precision", "told"),
    [
        ("method=qlora", "bf16", r"training\.fsdp: cannot shard .* Set it to false for qlora, or use method: lora\."),
        ("method=full", "fp16", r"training\.fsdp: cannot be used with fp16.* Set precision: bf16 or fp32\."),
        ("training.optim=adafactor", "fp32", r"training\.optim: adafactor .* use one of adamw_torch, "),
        ("training.optim=adamw_8bit", "fp32", r"training\.optim: adamw_8bit .* use one of adamw_torch, "),
        ("training.torch_compile=true", "fp32", r"training\.torch_compile: .* Remove it, or set fsdp: false\."),
    ],
)
def test_what_cannot_be_sharded_is_refused_with_what_could(
    change: str, precision: ChosenPrecision, told: str, recipe_path: Path
) -> None:
    with pytest.raises(FieldError, match=told):
        check_sharding(sharded(recipe_path, change), 2, precision)


def test_one_process_is_told_that_it_shares_nothing(recipe_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_sharding(sharded(recipe_path, "method=qlora"), 1, "fp16")

    assert "training.fsdp has no effect on one process" in capfd.readouterr().err
