"""How several processes share a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.errors import FieldError, InputError
from peftkit.planning.decisions import ChosenPrecision
from peftkit.planning.hardware import Hardware
from peftkit.planning.processes import (
    Place,
    Share,
    check_machine,
    check_recipe,
    check_sharding,
    is_follower,
    is_sharded,
    share_of,
)
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Recipe

CPU = Hardware("cpu", "a CPU", 24 * 10**9, 1, 2)
TWO_GPUS = Hardware("cuda", "A100", 80 * 10**9, 2, 12, (8, 0))
TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1",
}  # fmt: skip


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_without_a_launcher_a_process_is_the_only_one(environment: dict[str, str]) -> None:
    assert Place.from_environment(environment) == Place(0, 1, 0, 1)
    assert Place.from_environment(environment).is_main


def test_a_process_is_what_the_launcher_says() -> None:
    place = Place.from_environment(TORCHRUN)

    assert place == Place(rank=5, count=8, local_rank=1, local_count=4)
    assert not place.is_main


@pytest.mark.parametrize(
    ("environment", "expected"),
    [(TORCHRUN, True), ({**TORCHRUN, "RANK": "0"}, False), ({}, False), ({"RANK": "1", "WORLD_SIZE": "2"}, False)],
)
def test_only_beside_a_main_process_is_one_quiet(environment: dict[str, str], expected: bool) -> None:
    assert is_follower(environment) is expected


def test_half_of_a_launcher_is_an_error_that_names_what_is_missing() -> None:
    with pytest.raises(InputError, match="WORLD_SIZE is 2, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"):
        Place.from_environment({"WORLD_SIZE": "2", "RANK": "0"})


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_launcher_that_would_shard_by_itself_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is set.*Launch with --multi_gpu"):
        Place.from_environment({**TORCHRUN, name: "true"})
    assert Place.from_environment({**TORCHRUN, name: "false"}).count == 8


@pytest.mark.parametrize(
    ("rows", "accumulation", "processes", "expected"),
    [
        (8, 4, 1, Share(8, 4)),
        (8, 4, 2, Share(8, 2)),
        (8, 4, 4, Share(8, 1)),
        (8, 1, 2, Share(4, 1)),
        (8, 4, 8, Share(4, 1)),
        (4, 3, 2, Share(3, 2)),
        (1, 8, 4, Share(1, 2)),
        (6, 3, 9, Share(2, 1)),
    ],
)
def test_each_process_takes_fewer_passes_or_else_fewer_rows(
    rows: int, accumulation: int, processes: int, expected: Share
) -> None:
    assert share_of(rows, accumulation, processes) == expected


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 16))
def test_the_batch_of_a_step_is_kept_or_refused(rows: int, accumulation: int, processes: int) -> None:
    try:
        share = share_of(rows, accumulation, processes)
    except FieldError:
        assert rows * accumulation % processes
    else:
        assert share.rows * share.accumulation * processes == rows * accumulation
        assert share.rows <= rows


def test_what_cannot_be_shared_is_refused_with_what_could(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path).recipe

    with pytest.raises(FieldError, match=r"4 sequences, which 3 processes cannot share.*or use 2, 4 processes\."):
        check_recipe(recipe, 3)
    check_recipe(recipe, 2)


def test_batches_that_depend_on_the_number_of_processes_are_refused(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, overrides=["training.train_sampling_strategy=batch_rebalance"]).recipe

    with pytest.raises(FieldError, match="batch_rebalance makes other steps with every number of processes"):
        check_recipe(recipe, 2)
    check_recipe(recipe, 1)


def test_every_process_has_a_gpu_or_is_refused() -> None:
    check_machine(Place(0, 2, 0, 2), TWO_GPUS)
    check_machine(Place(0, 8, 0, 2), TWO_GPUS)
    check_machine(Place(0, 8, 0, 8), CPU)

    with pytest.raises(InputError, match="3 processes need a GPU each, but this machine has 2 GPUs"):
        check_machine(Place(0, 3, 0, 3), TWO_GPUS)


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
