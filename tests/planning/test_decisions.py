"""What is decided by the machine, for machines that are not here too, and what a recipe sets itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from peftkit.errors import FieldError
from peftkit.planning.decisions import (
    ChosenPrecision,
    Dtype,
    choose_attention,
    choose_base_dtype,
    choose_checkpointing,
    choose_optimizer,
    choose_precision,
    choose_tf32,
    decide,
    dtype_of,
)
from peftkit.planning.hardware import Decision, Hardware, device_named
from peftkit.planning.memory import StepMemory
from peftkit.recipe.hyperparameters import Training
from peftkit.recipe.schema import Base, Data, Method, Precision, Recipe, Source

GB = 10**9
CPU, MPS, T4, A100, H100 = (device_named(name) for name in ("cpu", "mps", "t4", "a100", "h100"))
AMX_CPU = Hardware("cpu", "a CPU with AMX", 24 * GB, 1, 2, cpu_bf16=True)
SDPA = ("sdpa",)
FLEX = ("flex_attention", "sdpa")
VARLEN = ("varlen", *FLEX)

TABLE: dict[str, tuple[Hardware, tuple[Any, ...]]] = {
    # precision, base weights, TF32, attention, optimizer, checkpointing, torch.compile, workers, pinned memory
    "cpu": (CPU, ("fp32", "float32", False, SDPA, "adamw_torch_fused", False, False, 0, False)),
    "cpu with bf16": (AMX_CPU, ("fp32", "float32", False, SDPA, "adamw_torch_fused", False, False, 0, False)),
    "t4": (T4, ("fp16", "float16", False, SDPA, "adamw_torch_fused", False, False, 0, True)),
    "v100": (device_named("v100"), ("fp16", "float16", False, SDPA, "adamw_torch_fused", False, False, 0, True)),
    "rtx3060": (
        device_named("rtx3060"),
        ("bf16", "bfloat16", True, VARLEN, "adamw_torch_fused", False, False, 0, True),
    ),
    "rtx4090": (
        device_named("rtx4090"),
        ("bf16", "bfloat16", True, VARLEN, "adamw_torch_fused", False, False, 0, True),
    ),
    "a100": (A100, ("bf16", "bfloat16", True, VARLEN, "adamw_torch_fused", False, False, 0, True)),
    "h100": (H100, ("bf16", "bfloat16", True, VARLEN, "adamw_torch_fused", False, False, 0, True)),
    "24GB": (device_named("24GB"), ("bf16", "bfloat16", True, VARLEN, "adamw_torch_fused", False, False, 0, True)),
    "mps": (MPS, ("fp32", "float32", False, SDPA, "adamw_torch_fused", False, False, 0, False)),
}


def recipe_with(**training: Any) -> Recipe:
    data = Data(train=Source(path="train.jsonl"))
    return Recipe(name="r", base=Base(model="gpt2"), data=data, training=Training.model_validate(training))


def step(limit: int, *, trainable: int = 100_000_000, row_bytes: int = GB) -> StepMemory:
    """A step of eight rows of a model with 100 million weights, 12 layers and no embeddings."""
    return StepMemory(400_000_000, trainable, 100_000_000, 0, row_bytes, 8, 12, limit)


@pytest.mark.parametrize("name", TABLE)
def test_every_decision_on_every_machine(name: str) -> None:
    hardware, expected = TABLE[name]

    decisions = decide(hardware)

    assert tuple(decision.choice for decision in decisions) == expected
    assert all(decision.reason and "\n" not in decision.reason and len(decision.reason) < 90 for decision in decisions)


def test_what_a_recipe_sets_itself_wins_everywhere() -> None:
    settings = {
        "tf32": False,
        "optim": "adamw_bnb_8bit",
        "activation_checkpointing": True,
        "torch_compile": True,
        "dataloader_num_workers": 2,
        "dataloader_pin_memory": False,
    }

    decisions = {decision.reason: decision.choice for decision in decide(A100, recipe_with(**settings))}

    assert {f"the recipe sets training.{name}": value for name, value in settings.items()}.items() <= decisions.items()


def test_a_value_that_is_set_to_its_default_is_the_recipes_own() -> None:
    assert choose_optimizer(Training(optim="adamw_torch_fused"), CPU).reason == "the recipe sets training.optim"


FLASH = ("flash_attention_2", "sdpa")
ALL: dict[str, Any] = {"varlen": True, "flash": True, "flex": True}
NONE: dict[str, Any] = {"varlen": False, "flash": False, "flex": False}


@pytest.mark.parametrize(
    ("hardware", "base_dtype", "precision", "kernels", "expected"),
    [
        (CPU, "float32", "fp32", ALL, SDPA),
        (MPS, "float32", "fp32", ALL, SDPA),
        (T4, "float32", "fp16", ALL, SDPA),
        (A100, "bfloat16", "bf16", ALL, ("varlen", "flash_attention_2", *FLEX)),
        (A100, "bfloat16", "bf16", ALL | {"varlen": False}, ("flash_attention_2", *FLEX)),
        (A100, "bfloat16", "bf16", NONE | {"flex": True}, FLEX),
        (A100, "bfloat16", "bf16", NONE, SDPA),
        (H100, "float32", "bf16", ALL, VARLEN),  # autocast makes 16 bits of float32 weights' results
        (H100, "float32", "fp16", ALL, VARLEN),
        (H100, "float32", "bf16", NONE | {"varlen": True}, ("varlen", "sdpa")),
        (H100, "bfloat16", "fp32", NONE | {"varlen": True}, ("varlen", "sdpa")),
        (H100, "float32", "fp32", ALL, FLEX),
        (H100, "bfloat16", "bf16", NONE | {"flash": True}, FLASH),
        (H100, "float32", "bf16", NONE | {"flash": True}, SDPA),
    ],
)
def test_packed_documents_take_the_kernels_for_variable_lengths_where_there_are_any(
    hardware: Hardware,
    base_dtype: Dtype,
    precision: ChosenPrecision,
    kernels: dict[str, bool],
    expected: tuple[str, ...],
) -> None:
    assert choose_attention(hardware, base_dtype, precision, packed=True, **kernels).choice == expected
    assert choose_attention(hardware, base_dtype, precision, packed=False, **kernels).choice == SDPA


@pytest.mark.parametrize(
    ("hardware", "precision", "kernels", "reason"),
    [
        (A100, "bf16", ALL, "torch's FlashAttention computes each document alone; tried on the model first"),
        (
            A100,
            "bf16",
            ALL | {"varlen": False},
            "FlashAttention computes each document alone; tried on the model first",
        ),
        (A100, "fp32", ALL, "skips blocks that packed documents do not see; tried on the model first"),
        (A100, "fp32", ALL | {"flex": False}, "FlashAttention takes 16-bit numbers only"),
        (A100, "fp32", NONE, "neither FlashAttention nor flex attention fits this model"),
        (T4, "fp16", ALL, "need an NVIDIA GPU from Ampere on"),
    ],
)
def test_the_reason_says_what_the_first_kernel_does_or_why_there_is_none(
    hardware: Hardware, precision: ChosenPrecision, kernels: dict[str, bool], reason: str
) -> None:
    base_dtype: Dtype = "float32" if precision == "fp32" else "bfloat16"

    found = choose_attention(hardware, base_dtype, precision, packed=True, **kernels).reason

    assert reason in found
    assert len(found) < 90


@pytest.mark.parametrize(
    ("hardware", "limit", "words"),
    [
        (T4, 12 * GB, None),  # 0.4 GB of weights, 1.2 of gradients and state, 8.8 of activations: it fits
        (T4, 10 * GB, "its state of 800 MB is too much here: training.optim=adamw_bnb_8bit has 200 MB"),
        (CPU, 10 * GB, "training.optim=adamw_bnb_8bit has 200 MB"),
        (T4, int(9.7 * GB), "training.optim=paged_adamw_8bit moves it out of the GPU"),
        (CPU, int(9.7 * GB), None),  # there is nothing to move it out of
        (MPS, 10 * GB, None),  # bitsandbytes has no 8-bit optimizer there
        (T4, 5 * GB, None),  # the state is not what is too much
    ],
)
def test_an_optimizer_with_less_state_is_suggested_where_it_lets_a_step_fit_and_never_taken(
    hardware: Hardware, limit: int, words: str | None
) -> None:
    decision = choose_optimizer(Training(), hardware, step(limit))

    assert decision.choice == "adamw_torch_fused"
    assert decision.reason.endswith(words or "to be comparable")


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit", "paged_lion_32bit"])
def test_optimizers_of_bitsandbytes_are_refused_on_apples_gpus(optim: str) -> None:
    with pytest.raises(FieldError, match=r"training\.optim: .* none for Apple's GPUs"):
        choose_optimizer(Training(optim=optim), MPS)


@pytest.mark.parametrize(
    ("on", "limit", "words"),
    [
        (False, 12 * GB, "a step needs 10 GB of 12 GB without it"),
        (False, 5 * GB, "a step needs 10 GB of 5.0 GB, and with training.activation_checkpointing=true 3.1 GB"),
        (False, 3 * GB, "even with it a step needs 3.1 GB, and 3.0 GB are there"),
        (True, 12 * GB, "training.activation_checkpointing; a step needs 10 GB of 12 GB without it"),
        (True, 5 * GB, "a step needs 10 GB of 5.0 GB, and with it 3.1 GB"),
    ],
)
def test_whether_checkpointing_is_needed_is_told_with_figures(on: bool, limit: int, words: str) -> None:
    training = Training(activation_checkpointing=True) if on else Training()

    decision = choose_checkpointing(training, step(limit))

    assert decision.choice is on
    assert decision.reason.endswith(words)


def test_a_decision_reads_for_people_and_for_programs() -> None:
    attention = choose_attention(A100, "bfloat16", "bf16", packed=True, **ALL | {"flash": False})

    assert attention.text == "varlen, else flex_attention, else sdpa"
    assert choose_checkpointing(Training()).text == "off"
    assert Decision.from_json(json.loads(json.dumps(asdict(attention)))) == attention


@pytest.mark.parametrize(
    ("wanted", "hardware"),
    [
        ("fp32", T4), ("fp16", T4), ("fp32", A100), ("bf16", A100), ("fp16", H100), ("fp32", CPU), ("bf16", AMX_CPU),
        ("fp32", MPS),
    ],
)  # fmt: skip
def test_a_precision_that_the_machine_has_is_taken(wanted: Precision, hardware: Hardware) -> None:
    decision = choose_precision(wanted, hardware)

    assert (decision.choice, decision.reason) == (wanted, "the recipe sets precision")


@pytest.mark.parametrize(
    ("wanted", "hardware", "remedy"),
    [
        ("fp16", CPU, "needs a GPU"),
        ("bf16", CPU, "takes fp32 here"),
        ("bf16", T4, "takes fp16 here"),
        ("fp16", MPS, "takes fp32 here"),
        ("bf16", MPS, "takes fp32 here"),
    ],
)
def test_a_precision_that_the_machine_lacks_is_refused(wanted: Precision, hardware: Hardware, remedy: str) -> None:
    with pytest.raises(FieldError, match=remedy):
        choose_precision(wanted, hardware)


@pytest.mark.parametrize(
    ("method", "precision", "expected"),
    [
        ("full", "bf16", "float32"),
        ("full", "fp16", "float32"),
        ("lora", "bf16", "bfloat16"),
        ("lora", "fp16", "float16"),
        ("qlora", "fp32", "float32"),
        ("qlora", "bf16", "bfloat16"),
    ],
)
def test_trained_weights_are_float32_and_frozen_ones_follow_bf16(
    method: Method, precision: ChosenPrecision, expected: Dtype
) -> None:
    assert choose_base_dtype("auto", method, precision).choice == expected


def test_a_named_type_holds_frozen_weights_but_never_trained_ones() -> None:
    assert choose_base_dtype("float16", "lora", "fp16").choice == "float16"
    assert choose_base_dtype("bfloat16", "full", "bf16").choice == "float32"


def test_each_precision_has_its_torch_type() -> None:
    assert [dtype_of(precision) for precision in ("fp32", "bf16", "fp16")] == ["float32", "bfloat16", "float16"]


@pytest.mark.parametrize(
    ("hardware", "precision", "expected"),
    [(A100, "bf16", True), (A100, "fp16", True), (A100, "fp32", False), (T4, "fp16", False), (CPU, "fp32", False)],
)
def test_tf32_speeds_up_what_stays_fp32_unless_the_recipe_wants_whole_products(
    hardware: Hardware, precision: ChosenPrecision, expected: bool
) -> None:
    assert choose_tf32(Training(), hardware, precision).choice is expected


def test_a_recipe_has_the_last_word_on_tf32_where_the_machine_has_it() -> None:
    wanting = Training.model_validate({"tf32": True})

    assert choose_tf32(wanting, A100, "fp32").choice is True
    assert choose_tf32(Training.model_validate({"tf32": False}), A100, "bf16").choice is False
    with pytest.raises(FieldError, match=r"training\.tf32: T4 has no TF32"):
        choose_tf32(wanting, T4, "fp32")
