"""Every method trains with the same arguments, made from the recipe and the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils.import_utils import enable_tf32

from peftkit.errors import FieldError, RecipeError
from peftkit.planning.hardware import device_named
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


def test_the_best_perplexity_is_the_lowest(recipe_path: Path, tmp_path: Path) -> None:
    best = ("load_best_model_at_end=true", "metric_for_best_model=perplexity", "save_strategy=epoch")
    recipe = recipe_of(recipe_path, "lora", *(f"training.{field}" for field in best))

    arguments = training_arguments(recipe, CPU, "fp32", tmp_path)

    assert (arguments.metric_for_best_model, arguments.greater_is_better) == ("perplexity", False)


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


BACKENDS: Any = torch.backends
PRECISIONS = {
    "all": BACKENDS,
    "cuda": BACKENDS.cudnn,
    "cuda matmul": BACKENDS.cuda.matmul,
    "cuda conv": BACKENDS.cudnn.conv,
    "cuda rnn": BACKENDS.cudnn.rnn,
    "mkldnn matmul": BACKENDS.mkldnn.matmul,
    "mkldnn conv": BACKENDS.mkldnn.conv,
    "mkldnn rnn": BACKENDS.mkldnn.rnn,
}


def precisions() -> dict[str, str]:
    """What each of torch's settings of fp32 compute is in effect."""
    return {name: place.fp32_precision for name, place in PRECISIONS.items()}


def train_with_tf32() -> None:
    """What a run does to these settings that is compiled on an NVIDIA GPU."""
    enable_tf32(True)
    torch._dynamo.reset()
    torch.compile(lambda values: values + 1, backend="eager")(torch.ones(2))


@pytest.fixture
def _precisions_as_before() -> Iterator[None]:
    before = precisions()
    yield
    torch.set_float32_matmul_precision("highest")
    for name, value in before.items():
        PRECISIONS[name].fp32_precision = value


def test_batches_are_copied_to_a_gpu_while_the_host_continues(recipe_path: Path, tmp_path: Path) -> None:
    changes = ("training.dataloader_pin_memory=false",), ("training.accelerator_config={non_blocking: false}",)
    built = [training_arguments(recipe_of(recipe_path), device, "fp32", tmp_path) for device in (CPU, T4)]
    own = [training_arguments(recipe_of(recipe_path, "lora", *each), T4, "fp32", tmp_path) for each in changes]
    many = training_arguments(recipe_of(recipe_path), T4, "fp32", tmp_path, processes=2)

    asked = [arguments.accelerator_config.non_blocking for arguments in (*built, *own, many)]

    assert asked == [False, True, False, False, True]


def test_what_a_recipe_says_of_loading_is_taken(recipe_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "accelerator.json"
    path.write_text('{"use_seedable_sampler": false}', encoding="utf-8")

    built = [
        training_arguments(recipe_of(recipe_path, "lora", f"training.accelerator_config={given}"), CPU, "fp32", path)
        for given in ("{use_seedable_sampler: false}", path)
    ]

    assert [each.accelerator_config.use_seedable_sampler for each in built] == [False, False]


@pytest.mark.parametrize(
    ("given", "told"),
    [("{dispatch_batches: true}", "each process makes its own rows"), ("missing.json", "missing.json cannot be read")],
)
def test_loading_that_peftkit_cannot_do_is_refused(given: str, told: str, recipe_path: Path, tmp_path: Path) -> None:
    recipe = recipe_of(recipe_path, "lora", f"training.accelerator_config={given}")

    with pytest.raises(FieldError, match=told):
        training_arguments(recipe, CPU, "fp32", tmp_path)


def test_a_run_that_compiles_leaves_the_precision_of_matmuls_as_it_was() -> None:
    before = precisions()

    with products_as_before():
        train_with_tf32()
        within = precisions()

    assert (within["all"], within["cuda matmul"]) == ("tf32", "tf32")
    assert precisions() == before


def test_after_a_run_the_common_precision_still_acts_on_all_that_inherit_it() -> None:
    with products_as_before():
        train_with_tf32()

    with products_as_before():
        BACKENDS.fp32_precision = "ieee"
        inherited = precisions()

    assert inherited["cuda matmul"] == inherited["mkldnn matmul"] == "ieee"


@pytest.mark.usefixtures("_precisions_as_before")
@pytest.mark.parametrize("chosen", ["highest", "high"])
def test_what_was_chosen_by_the_older_api_is_kept_and_can_still_be_asked_for(chosen: str) -> None:
    torch.set_float32_matmul_precision(chosen)
    before = precisions()

    with products_as_before():
        train_with_tf32()

    assert torch.get_float32_matmul_precision() == chosen
    assert BACKENDS.cuda.matmul.allow_tf32 is (chosen == "high")
    assert precisions() == before


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


def test_several_processes_share_the_batches_and_draw_one_order(recipe_path: Path, tmp_path: Path) -> None:
    changes = ("training.per_device_train_batch_size=8", "training.gradient_accumulation_steps=4", "training.seed=7")

    arguments = training_arguments(recipe_of(recipe_path, "lora", *changes), CPU, "fp32", tmp_path, processes=2)

    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (16, 2)
    assert arguments.accelerator_config.split_batches
    assert not arguments.accelerator_config.even_batches
    assert arguments.data_seed == 7


@pytest.mark.parametrize("value", ["true", "full_shard", "full_shard auto_wrap", "[full_shard]"])
def test_a_model_is_sharded_by_peftkit_and_not_by_the_trainer(value: str, recipe_path: Path, tmp_path: Path) -> None:
    recipe = recipe_of(recipe_path, "lora", f"training.fsdp={value}")

    assert recipe.training.fsdp is True
    assert not training_arguments(recipe, CPU, "fp32", tmp_path, processes=2).fsdp


@pytest.mark.parametrize("value", ["false", "null"])
def test_a_model_need_not_be_sharded(value: str, recipe_path: Path) -> None:
    assert recipe_of(recipe_path, "lora", f"training.fsdp={value}").training.fsdp is False


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("fsdp=shard_grad_op", "can only be true or full_shard"),
        ("fsdp=[full_shard, offload]", "can only be true or full_shard"),
        ("fsdp=2", "can only be true or full_shard"),
        ("fsdp_config={}", "leaves nothing to configure"),
        ("deepspeed=zero.json", "use fsdp: true, or method: qlora"),
    ],
)
def test_sharding_in_another_way_is_refused_by_the_recipe(field: str, told: str, recipe_path: Path) -> None:
    with pytest.raises(RecipeError, match=told):
        recipe_of(recipe_path, "lora", f"training.{field}")
