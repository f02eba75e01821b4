"""Precision and number types are chosen from what a machine is, for machines that are not here too."""

from __future__ import annotations

import pytest

from peftkit.errors import FieldError
from peftkit.planning.decisions import (
    ChosenPrecision,
    Dtype,
    choose_base_dtype,
    choose_precision,
    choose_tf32,
    dtype_of,
)
from peftkit.planning.hardware import Hardware, device_named
from peftkit.recipe.hyperparameters import Training
from peftkit.recipe.schema import Method, Precision

T4, A100, H100, CPU, MPS = (device_named(name) for name in ("t4", "a100", "h100", "cpu", "mps"))
AMX_CPU = Hardware("cpu", "a CPU with AMX", 24 * 10**9, 1, 2, cpu_bf16=True)


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
