"""The method and the batch that a memory has room for."""

from __future__ import annotations

import pytest

from peftkit.planning.choice import BATCH, choose_method, in_words, length_for, rows_that_fit

GB = 10**9


@pytest.mark.parametrize(
    ("parameters", "memory", "half", "method", "dtype"),
    [
        (124 * 10**6, 16, False, "full", "auto"),
        (10**9, 20, False, "full", "auto"),
        (10**9 + 1, 20, False, "lora", "auto"),
        (4 * 10**9, 20, False, "lora", "auto"),
        (7 * 10**9, 24, True, "lora", "bfloat16"),
        (7 * 10**9, 24, False, "qlora", "auto"),
        (70 * 10**9, 80, True, "qlora", "auto"),
    ],
)
def test_the_first_method_that_fits_into_four_fifths_is_chosen(
    parameters: int, memory: int, half: bool, method: str, dtype: str
) -> None:
    choice = choose_method(parameters, memory * GB, half=half)

    assert (choice.method, choice.dtype, choice.fits) == (method, dtype, True)
    assert f"fit into 80% of {memory} GB" in choice.why


def test_what_fits_nowhere_is_trained_in_the_least_memory_and_said_not_to_fit() -> None:
    choice = choose_method(70 * 10**9, 24 * GB, half=True)

    assert (choice.method, choice.fits) == ("qlora", False)
    assert "70 billion parameters at 0.6 bytes" in choice.why
    assert "do not fit into" in choice.why


def test_a_method_that_is_wanted_is_taken_and_held_as_it_fits() -> None:
    choice = choose_method(7 * 10**9, 24 * GB, half=True, wanted="lora")
    full = choose_method(7 * 10**9, 24 * GB, half=True, wanted="full")

    assert (choice.method, choice.dtype) == ("lora", "bfloat16")
    assert (full.method, full.fits) == ("full", False)


def test_of_an_unknown_size_the_memory_says_how_large_it_may_be() -> None:
    choice = choose_method(None, 16 * GB, half=False)

    assert (choice.method, choice.held_bytes) == ("lora", None)
    assert "16 GB hold up to 3.2 billion parameters" in choice.why
    assert choose_method(None, 16 * GB, half=False, wanted="qlora").method == "qlora"


def test_rows_are_a_power_of_two_up_to_a_batch() -> None:
    fitting = [rows_that_fit(10**8, (2 * GB + rows * 10**8) / 0.9 + 1, 2 * GB) for rows in (0, 1, 3, 4, 99)]

    assert fitting == [0, 1, 2, 4, BATCH]
    assert rows_that_fit(10**8, GB, 2 * GB) == 0


@pytest.mark.parametrize(
    ("longest", "positions", "length"), [(59, 128, 64), (64, None, 64), (65, None, 96), (999, 512, 512)]
)
def test_a_length_is_rounded_up_and_never_more_than_the_base_sees(
    longest: int, positions: int | None, length: int
) -> None:
    assert length_for(longest, positions) == length


def test_parameters_are_told_in_words() -> None:
    assert [in_words(number) for number in (941_000, 124_439_808, 8 * 10**9)] == [
        "0.941 million", "124 million", "8 billion"]  # fmt: skip
