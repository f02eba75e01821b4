"""The machine at hand, as a `Hardware` record, and its memory given back."""

from __future__ import annotations

import gc
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from peftkit.planning.hardware import Hardware

__all__ = ["LiveModel", "detect_hardware", "free_memory"]


def detect_hardware() -> Hardware:
    """Look at the machine: the current GPU if torch has one, Apple's too, and the CPU otherwise."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        capability, count = (gpu.major, gpu.minor), torch.cuda.device_count()
        return Hardware("cuda", gpu.name, gpu.total_memory, count, cores, capability, cpu_bf16=_cpu_has_bf16())
    if torch.backends.mps.is_available():  # its memory is a part of the CPU's
        return Hardware("mps", f"{_cpu_name()} GPU", torch.mps.recommended_max_memory(), 1, cores)
    return Hardware("cpu", _cpu_name(), psutil.virtual_memory().total, 1, cores, cpu_bf16=_cpu_has_bf16())


class LiveModel:
    """The one lasting reference to a model: whoever works with it borrows it for as long as the work takes."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def model(self) -> Any:
        """The model.

        Raises:
            RuntimeError: it has been released.
        """
        if self._model is None:
            raise RuntimeError("the model has been released")
        return self._model

    def take(self, model: Any) -> None:
        """Hold another model."""
        self._model = model

    def release(self) -> None:
        """Give its memory back to the device."""
        self._model = None
        free_memory()


def free_memory() -> None:
    """Give back what nobody refers to any more: a Trainer and its optimizer are rings, which only a search finds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _cpu_fact(name: str) -> str:
    """A line of Linux's description of the CPU, or nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _cpu_name() -> str:
    return _cpu_fact("model name") or platform.processor() or platform.machine()


def _cpu_has_bf16() -> bool:
    return bool({"avx512_bf16", "amx_bf16"} & set(_cpu_fact("flags").split()))
