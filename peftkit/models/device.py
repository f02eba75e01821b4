"""The machine at hand, as a `Hardware` record."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil
import torch

from peftkit.planning.hardware import Hardware

__all__ = ["detect_hardware"]


def detect_hardware() -> Hardware:
    """Look at the machine: the current GPU if torch has one, Apple's too, and the CPU otherwise."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return Hardware(
            device="cuda",
            name=properties.name,
            memory_bytes=properties.total_memory,
            device_count=torch.cuda.device_count(),
            cpu_cores=cores,
            capability=(properties.major, properties.minor),
            cpu_bf16=_cpu_has_bf16(),
        )
    if torch.backends.mps.is_available():
        return Hardware(
            device="mps",
            name=f"{_cpu_name()} GPU",
            memory_bytes=torch.mps.recommended_max_memory(),  # of the memory that it shares with the CPU
            device_count=1,
            cpu_cores=cores,
        )
    return Hardware(
        device="cpu",
        name=_cpu_name(),
        memory_bytes=psutil.virtual_memory().total,
        device_count=1,
        cpu_cores=cores,
        cpu_bf16=_cpu_has_bf16(),
    )


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
