"""Precision and number types are chosen from what a machine is, for machines that are not here too."""

from __future__ import annotations

import pytest

from peftkit.errors import FieldError
from peftkit.planning.hardware import (
    ChosenPrecision,
    Dtype,
    Hardware,
    choose_attention,
    choose_base_dtype,
    choose_precision,
    dtype_of,
)
from peftkit.recipe.schema import Method, Precision

GB = 10**9
T4 = Hardware("cuda", "Tesla T4", 16 * GB, 1, 4, (7, 5))
A100 = Hardware("cuda", "A100", 80 * GB, 1, 12, (8, 0))
H100 = Hardware("cuda", "H100", 80 * GB, 1, 16, (9, 0))
CPU = Hardware("cpu", "a CPU", 24 * GB, 1, 2)
AMX_CPU = Hardware("cpu", "a CPU with AMX", 24 * GB, 1, 2, cpu_bf16=True)


@pytest.mark.parametrize(("hardware", "expected"), [(T4, "fp16"), (A100, "bf16"), (H100, "bf16"), (CPU, "fp32")])
def test_auto_precision_is_what_the_machine_computes_fast_and_safely(hardware: Hardware, expected: str) -> None:
    assert choose_precision("auto", hardware) == expected


@pytest.mark.parametrize(
    ("wanted", "hardware"),
    [("fp32", T4), ("fp16", T4), ("fp32", A100), ("bf16", A100), ("fp16", H100), ("fp32", CPU), ("bf16", AMX_CPU)],
)
def test_a_precision_that_the_machine_has_is_taken(wanted: Precision, hardware: Hardware) -> None:
    assert choose_precision(wanted, hardware) == wanted


@pytest.mark.parametrize(
    ("wanted", "hardware", "remedy"),
    [("fp16", CPU, "needs a GPU"), ("bf16", CPU, "takes fp32 here"), ("bf16", T4, "takes fp16 here")],
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
        ("lora", "fp16", "float32"),
        ("qlora", "fp32", "float32"),
        ("qlora", "bf16", "bfloat16"),
    ],
)
def test_trained_weights_are_float32_and_frozen_ones_follow_bf16(
    method: Method, precision: ChosenPrecision, expected: Dtype
) -> None:
    assert choose_base_dtype("auto", method, precision) == expected


def test_a_named_type_holds_frozen_weights_but_never_trained_ones() -> None:
    assert choose_base_dtype("float16", "lora", "fp16") == "float16"
    assert choose_base_dtype("bfloat16", "full", "bf16") == "float32"


def test_each_precision_has_its_torch_type() -> None:
    assert [dtype_of(precision) for precision in ("fp32", "bf16", "fp16")] == ["float32", "bfloat16", "float16"]


@pytest.mark.parametrize(
    ("hardware", "base_dtype", "flash", "flex", "expected"),
    [
        (CPU, "float32", True, True, ("sdpa",)),
        (T4, "float32", True, True, ("sdpa",)),
        (A100, "bfloat16", True, True, ("flash_attention_2", "flex_attention", "sdpa")),
        (A100, "bfloat16", False, True, ("flex_attention", "sdpa")),
        (H100, "float32", True, True, ("flex_attention", "sdpa")),
        (H100, "bfloat16", True, False, ("flash_attention_2", "sdpa")),
        (H100, "float32", True, False, ("sdpa",)),
    ],
)
def test_packed_documents_take_the_kernels_for_variable_lengths_where_there_are_any(
    hardware: Hardware, base_dtype: Dtype, flash: bool, flex: bool, expected: tuple[str, ...]
) -> None:
    assert choose_attention(hardware, base_dtype, packed=True, flash=flash, flex=flex) == expected
    assert choose_attention(hardware, base_dtype, packed=False, flash=flash, flex=flex) == ("sdpa",)
