"""Of the changes that are named, each would fit, and those that leave the result most alike come first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.optimization import Adafactor

from peftkit.planning.memory import Fit, GpuMemory, StepMemory, fitting_batch, fixed_and_row, halved_batch, what_fits
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Recipe

MB = 10**6
FULL = StepMemory(
    base_bytes=400 * MB,
    trainable=100 * MB,
    total=100 * MB,
    embeddings=40 * MB,
    row_bytes=100 * MB,
    rows=8,
    layers=12,
    limit_bytes=10_000 * MB,
    quantised_bytes=0.5 + 1 / 64 + 4 / (64 * 256),  # NF4 with scales quantised too
)
"""A step of a model with a hundred million weights, all of them trained: 1,600 MB for these, and 110 for each row."""

ADAPTER = replace(FULL, trainable=MB)
STEPS = st.builds(
    StepMemory,
    base_bytes=st.integers(0, 10**10),
    trainable=st.integers(0, 10**9),
    total=st.integers(10**9, 10**10),
    embeddings=st.integers(0, 10**9),
    row_bytes=st.integers(0, 10**9),
    rows=st.integers(1, 64),
    layers=st.integers(1, 48),
    limit_bytes=st.integers(0, 10**11),
)
METHODS = st.sampled_from(["full", "lora", "qlora"])


def recipe(method: str, **training: Any) -> Recipe:
    values = {"name": "small", "method": method, "base": {"model": "gpt2"}, "data": {"train": {"path": "rows.txt"}}}
    return Recipe.model_validate({**values, "training": {"per_device_train_batch_size": 8, **training}})


def changes(fits: list[Fit]) -> list[str]:
    return [fit.change for fit in fits]


def fields(fits: list[Fit]) -> list[str]:
    """What each of the changes sets."""
    return [fit.change.split()[0] if fit.change.startswith("method") else fit.change.split("=")[0] for fit in fits]


def stepped(kind: Any, **settings: Any) -> int:
    """The bytes of weights, gradients and an optimizer's state after its first step."""
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in ((60, 50), (50,))]
    optimizer = kind(weights, lr=1e-3, **settings)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    states = [each for state in optimizer.state.values() for each in state.values() if isinstance(each, torch.Tensor)]
    return sum(each.nbytes for each in (*weights, *weights, *states) if each.dim())  # without the counts of steps


def test_weights_with_gradients_and_adamws_state_are_as_large_as_they_really_are() -> None:
    step = replace(FULL, base_bytes=4 * 3050, trainable=3050, total=3050)

    assert step.peak_bytes(0) == stepped(torch.optim.AdamW)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (Adafactor, {"scale_parameter": False, "relative_step": False}),
    ],
)
def test_with_an_optimizer_that_keeps_less_no_more_is_needed(kind: Any, settings: dict[str, Any]) -> None:
    step = replace(FULL, base_bytes=4 * 3050, trainable=3050, total=3050)

    assert 8 * 3050 <= stepped(kind, **settings) < step.peak_bytes(0)


def test_weights_that_are_not_trained_need_their_own_room_alone() -> None:
    assert replace(FULL, trainable=0).peak_bytes(0) == FULL.base_bytes


@given(step=STEPS, rows=st.integers(1, 64))
def test_each_further_row_needs_at_least_what_is_kept_for_it(step: StepMemory, rows: int) -> None:
    more = step.peak_bytes(rows + 1) - step.peak_bytes(rows)

    assert step.row_bytes - 1 <= more <= 1.2 * step.row_bytes + 1


@given(step=STEPS)
def test_activation_checkpointing_never_needs_more_and_with_many_layers_far_less(step: StepMemory) -> None:
    deep, shallow = replace(step, layers=40), replace(step, layers=2)

    assert step.peak_bytes(8, checkpointing=True) <= step.peak_bytes(8)
    assert shallow.peak_bytes(8, checkpointing=True) == shallow.peak_bytes(8)
    for_rows = deep.peak_bytes(8) - deep.peak_bytes(0)
    assert deep.peak_bytes(8, checkpointing=True) - deep.peak_bytes(0) == pytest.approx(for_rows / 20, abs=2)


@given(step=STEPS)
def test_nothing_but_the_rows_is_changed_by_activation_checkpointing(step: StepMemory) -> None:
    assert step.peak_bytes(0, checkpointing=True) == step.peak_bytes(0)


@given(rows=st.integers(2, 512), accumulation=st.integers(1, 512))
def test_a_smaller_batch_keeps_the_effective_one(rows: int, accumulation: int) -> None:
    halved = halved_batch(rows, accumulation)

    assert halved is not None
    assert halved[0] * halved[1] == rows * accumulation
    assert 1 <= halved[0] <= rows // 2


@given(rows=st.integers(2, 512))
def test_a_smaller_batch_is_the_largest_that_there_is(rows: int) -> None:
    halved = halved_batch(rows, 1)

    assert halved is not None
    assert [size for size in range(halved[0] + 1, rows) if rows % size == 0] == []


@pytest.mark.parametrize(
    ("batch", "smaller"), [((8, 1), (4, 2)), ((6, 4), (3, 8)), ((3, 8), (1, 24)), ((7, 1), (1, 7)), ((9, 2), (3, 6))]
)
def test_a_batch_is_halved_where_it_can_be(batch: tuple[int, int], smaller: tuple[int, int]) -> None:
    assert halved_batch(*batch) == smaller


@given(accumulation=st.integers(1, 512))
def test_of_one_row_nothing_can_be_taken(accumulation: int) -> None:
    assert halved_batch(1, accumulation) is None


def test_where_there_is_room_for_all_changes_they_are_named_in_their_order() -> None:
    assert changes(what_fits(FULL, recipe("full"))) == [
        "training.per_device_train_batch_size=4 with gradient_accumulation_steps=2",
        "training.activation_checkpointing=true",
        "training.optim=adamw_bnb_8bit",
        "method=lora",
        "method=qlora",
    ]


@pytest.mark.parametrize(("method", "named"), [("lora", ["method=qlora"]), ("qlora", [])])
def test_a_method_that_needs_more_is_never_named(method: str, named: list[str]) -> None:
    found = fields(what_fits(ADAPTER, recipe(method)))

    assert found == ["training.per_device_train_batch_size", "training.activation_checkpointing", *named]


def test_what_the_recipe_does_already_is_not_named() -> None:
    found = fields(what_fits(ADAPTER, recipe("lora", activation_checkpointing=True)))

    assert found == ["training.per_device_train_batch_size", "method=qlora"]


def test_where_there_is_one_row_the_batch_is_not_named() -> None:
    found = what_fits(replace(ADAPTER, rows=1), recipe("lora"))

    assert changes(found) == ["training.activation_checkpointing=true", "method=qlora"]


@pytest.mark.parametrize(
    ("limit", "change"),
    [
        (2100, "training.per_device_train_batch_size=4 with gradient_accumulation_steps=6"),
        (1850, "training.per_device_train_batch_size=2 with gradient_accumulation_steps=12"),
        (1750, "training.per_device_train_batch_size=1 with gradient_accumulation_steps=24"),
    ],
)
def test_the_largest_batch_that_fits_is_named(limit: int, change: str) -> None:
    step = replace(FULL, limit_bytes=limit * MB)

    assert changes(what_fits(step, recipe("full", gradient_accumulation_steps=3)))[0] == change


def test_where_no_batch_fits_other_changes_do() -> None:
    step = replace(FULL, limit_bytes=1650 * MB)

    assert changes(what_fits(step, recipe("full"))) == [
        "training.activation_checkpointing=true and one row at a time",
        "training.optim=adamw_bnb_8bit and one row at a time",
        "method=lora",
        "method=qlora",
    ]


def test_one_row_at_a_time_is_named_where_a_change_alone_is_not_enough() -> None:
    step = replace(FULL, limit_bytes=600 * MB)

    assert changes(what_fits(step, recipe("full"))) == [
        "method=lora and one row at a time",
        "method=qlora and one row at a time",
    ]


def test_where_nothing_fits_nothing_is_named() -> None:
    assert what_fits(replace(FULL, limit_bytes=50 * MB), recipe("full")) == []


@given(step=STEPS, method=METHODS, checkpointing=st.booleans())
def test_all_that_is_named_fits(step: StepMemory, method: str, checkpointing: bool) -> None:
    fits = what_fits(step, recipe(method, activation_checkpointing=checkpointing))

    assert all(0 <= fit.peak_bytes <= step.limit_bytes for fit in fits)
    assert len(set(fields(fits))) == len(fits)


@given(step=STEPS, method=METHODS, more=st.integers(0, 10**11))
def test_with_more_memory_everything_still_fits_that_did(step: StepMemory, method: str, more: int) -> None:
    fewer = fields(what_fits(step, recipe(method)))
    found = fields(what_fits(replace(step, limit_bytes=step.limit_bytes + more), recipe(method)))

    assert [field for field in found if field in fewer] == fewer


@given(step=STEPS, method=METHODS)
def test_what_is_needed_for_a_smaller_batch_is_what_a_step_of_it_needs(step: StepMemory, method: str) -> None:
    fits = what_fits(replace(step, limit_bytes=10**12), recipe(method))
    batch = [fit.peak_bytes for fit in fits if "batch_size" in fit.change]
    halved = halved_batch(step.rows, 1)

    assert batch == ([step.peak_bytes(halved[0])] if halved else [])


def test_each_change_can_be_set_as_it_is_named(recipe_path: Path) -> None:
    named = [change.split()[0] for change in changes(what_fits(replace(FULL, rows=4), recipe("full")))]

    before = load_recipe(recipe_path, overrides=["method=full"]).recipe
    after = [load_recipe(recipe_path, overrides=["method=full", change]).recipe for change in named]

    assert [each.training.per_device_train_batch_size for each in after] == [2, 4, 4, 4, 4]
    assert [each.training.activation_checkpointing for each in after] == [False, True, False, False, False]
    assert [before.method, *(each.method for each in after)] == ["full", "full", "full", "full", "lora", "qlora"]


def test_processes_that_share_the_weights_need_a_part_of_what_belongs_to_these() -> None:
    whole, part = FULL.parts(8), replace(FULL, processes=4, is_sharded=True).parts(8)

    at_once = 40 * MB  # the embeddings, which are larger than two layers of five million weights
    assert part["weights"] == whole["weights"] // 4 + 4 * at_once
    assert part["gradients"] == whole["gradients"] // 4 + 4 * at_once
    assert part["optimizer"] == whole["optimizer"] // 4
    assert part["activations"] == whole["activations"]


def test_processes_that_do_not_share_have_all_of_it_and_the_buckets_of_their_gradients() -> None:
    alone, together = FULL.parts(8), replace(FULL, processes=4).parts(8)

    assert together["gradients"] == 2 * alone["gradients"]
    assert {**together, "gradients": 0} == {**alone, "gradients": 0}


def test_weights_that_do_not_fit_into_each_process_are_shared() -> None:
    large = replace(FULL, rows=1, processes=8, limit_bytes=1_500 * MB)

    named = changes(what_fits(large, recipe("full")))

    assert "training.fsdp=true" in named
    assert "training.fsdp=true" not in changes(what_fits(replace(large, processes=1), recipe("full")))
    assert "training.fsdp=true" not in changes(what_fits(large, recipe("qlora")))


def test_what_sharded_weights_cannot_have_is_not_named_with_them() -> None:
    sharded = replace(FULL, processes=8, is_sharded=True, limit_bytes=1_300 * MB)

    named = changes(what_fits(sharded, recipe("full", fsdp=True)))

    assert not [change for change in named if "8bit" in change]
    assert "method=qlora with training.fsdp=false" in " ".join(named)


def test_what_is_kept_whatever_the_rows_are_counts_once() -> None:
    fixed, row = fixed_and_row(one=2_000 * MB, two=2_100 * MB)
    step = replace(FULL, fixed_bytes=fixed, row_bytes=row)

    assert (fixed, row) == (1_900 * MB, 100 * MB)
    assert step.peak_bytes(8) - FULL.peak_bytes(8) == 1_900 * MB
    assert step.peak_bytes(0) == FULL.peak_bytes(0)


def test_copies_of_trained_weights_stay_with_checkpointing_and_those_of_frozen_ones_go() -> None:
    full, lora = (replace(step, fixed_bytes=1_200 * MB, row_bytes=0) for step in (FULL, ADAPTER))

    assert full.parts(8, checkpointing=True)["activations"] == 1_200 * MB
    assert lora.parts(8, checkpointing=True)["activations"] == 200 * MB


@given(step=STEPS)
def test_a_step_with_checkpointing_is_the_same_whichever_way_it_is_asked(step: StepMemory) -> None:
    assert step.checkpointed().peak_bytes(8) == pytest.approx(step.peak_bytes(8, checkpointing=True), abs=10)


def test_the_end_of_a_run_counts_where_it_needs_more_than_a_step() -> None:
    small = replace(ADAPTER, row_bytes=MB, rows=1)
    step = small.peak_bytes(1) - small.base_bytes

    assert replace(small, end_bytes=step).peak_bytes(1) == small.peak_bytes(1)
    assert replace(small, end_bytes=step + MB).peak_bytes(1) == small.peak_bytes(1) + MB


@given(step=STEPS, rows=st.integers(2, 512), accumulation=st.integers(1, 8))
def test_the_next_batch_is_the_largest_half_that_fits_or_one_row(
    step: StepMemory, rows: int, accumulation: int
) -> None:
    halves = [(rows, accumulation)]
    while smaller := halved_batch(*halves[-1]):
        halves.append(smaller)

    fitting = [half for half in halves[1:] if step.peak_bytes(half[0]) <= step.limit_bytes]

    assert fitting_batch(step.fits, rows, accumulation) == (fitting or halves[-1:])[0]
    assert fitting_batch(step.fits, 1, accumulation) is None


def test_a_gpu_without_other_processes_has_all_that_the_driver_does_not_need() -> None:
    gpu = GpuMemory(total=24_000 * MB, free=18_500 * MB, reserved=5_000 * MB)

    assert (gpu.context_bytes, gpu.limit_bytes) == (500 * MB, 24_000 * MB)


def test_what_other_processes_have_of_a_gpu_is_not_there() -> None:
    gpu = GpuMemory(total=24_000 * MB, free=3_500 * MB, reserved=5_000 * MB)

    assert gpu.context_bytes == 10**9
    assert gpu.limit_bytes == 3_500 * MB + 5_000 * MB + gpu.context_bytes


def test_a_fraction_of_a_gpu_that_a_process_is_given_is_its_limit() -> None:
    gpu = GpuMemory(total=24_000 * MB, free=18_500 * MB, reserved=5_000 * MB, fraction=0.25)

    assert gpu.limit_bytes == 6_000 * MB + gpu.context_bytes
