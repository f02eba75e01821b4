"""An error that says that memory was short is recognised, whoever raised it, and says what did not fit."""

from __future__ import annotations

import errno

import pytest
import torch

from peftkit.errors import BaseError, MemoryRunError, RunError
from peftkit.shortage import figures, is_out_of_memory, memory_for

CUDA = (
    "CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 7.78 GiB of which 417.62 MiB is "
    "free. Including non-PyTorch memory, this process has 7.36 GiB memory in use."
)
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
MPS = "MPS backend out of memory (MPS allocated: 5.05 GB, other allocations: 2.23 GB, max allowed: 9.07 GB). Tried to "
SHORT = [
    torch.OutOfMemoryError(CUDA),
    torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError(f"{CPU}8589934592 bytes. Error code 12 (Cannot allocate memory)"),
    RuntimeError(f"{MPS}allocate 256.00 MB on private pool."),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    MemoryError(),
]
OTHERS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
    RuntimeError("out of resource: shared memory, Required: 163840, Hardware limit: 101376"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("mat1 and mat2 must have the same dtype"),
    RunError("no weight has moved"),
]


@pytest.mark.parametrize("error", SHORT, ids=lambda error: f"{type(error).__name__} {error!s:.40}")
def test_every_librarys_error_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: f"{type(error).__name__} {error!s:.40}")
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (CUDA, ": 2.1 GB more were needed, and 438 MB of 8.4 GB were free"),
        (f"{CPU}8589934592 bytes.", ": 8.6 GB more were needed"),
        (f"{MPS}allocate 256.00 MB on private pool.", ": 268 MB more were needed"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED", ""),
    ],
)
def test_the_amounts_that_a_message_has_are_repeated(text: str, told: str) -> None:
    assert figures(text) == told


def test_what_did_not_fit_is_named_with_the_remedy() -> None:
    with pytest.raises(MemoryRunError) as raised, memory_for("it", where="there", remedy="Do that.", batch="training"):
        raise torch.OutOfMemoryError(CUDA)

    assert str(raised.value) == (
        "there: it does not fit into memory: 2.1 GB more were needed, and 438 MB of 8.4 GB were free. Do that."
    )
    assert raised.value.batch == "training"


def test_an_error_that_hides_what_it_came_from_is_turned_all_the_same() -> None:
    hiding = BaseError("cannot be opened: it must be a causal language model.")

    with pytest.raises(MemoryRunError, match="2\\.1 GB"), memory_for("it", where="there", remedy="Do that."):
        raise hiding from torch.OutOfMemoryError(CUDA)


def test_what_is_known_already_and_what_is_something_else_stay_as_they_are() -> None:
    inner, other = MemoryRunError("the inner part does not fit into memory."), ValueError("something else")

    for error in (inner, other):
        with pytest.raises(type(error)) as raised, memory_for("the whole", where="there", remedy="Do that."):
            raise error
        assert raised.value is error
