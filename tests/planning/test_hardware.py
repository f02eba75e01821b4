"""A machine that is not here is known by its name or by its memory."""

from __future__ import annotations

import pytest

from peftkit.errors import InputError
from peftkit.planning.hardware import DEVICES, device_named


@pytest.mark.parametrize(
    ("name", "expected"),
    [("t4", "t4"), ("RTX 4090", "rtx4090"), ("NVIDIA GeForce RTX 3060", "rtx3060"), ("A100-80GB", "a100-80gb")],
)
def test_a_name_may_be_written_as_people_write_it(name: str, expected: str) -> None:
    assert device_named(name) is DEVICES[expected]


@pytest.mark.parametrize(("name", "gigabytes"), [("24GB", 24), ("7.5 gb", 7.5), ("48GiB", 48)])
def test_a_size_stands_for_a_gpu_with_so_much_memory(name: str, gigabytes: float) -> None:
    hardware = device_named(name)

    assert (hardware.device, hardware.memory_bytes, hardware.has_bf16) == ("cuda", gigabytes * 10**9, True)
    assert hardware.flops_16bit is None


@pytest.mark.parametrize(
    ("name", "words"),
    [("rtx4900", "Did you mean rtx4090?"), ("abacus", "There are: cpu, mps, t4"), ("0GB", "as 24GB"), ("", "as 24GB")],
)
def test_an_unknown_name_is_an_error_that_tells_the_known_ones(name: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        device_named(name)

    assert words in str(caught.value)


def test_16_bit_products_are_faster_than_32_bit_ones_on_every_gpu_whose_rates_are_known() -> None:
    known = {name: device for name, device in DEVICES.items() if device.flops_16bit and device.flops_fp32}

    assert len(known) == 9
    assert all((device.flops_16bit or 0) > (device.flops_fp32 or 0) for device in known.values())
