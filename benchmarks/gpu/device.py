"""The device that a job computes on. Only jobs import this: the benchmark itself never touches CUDA."""

from __future__ import annotations

import datetime
import platform
import re
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from peftkit.models.device import detect_hardware
from peftkit.planning.hardware import DEVICES

__all__ = ["device", "half_dtype", "limit_memory", "machine", "peak_bytes", "peak_flops"]

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "trl", "triton", "peftkit")
_STATUS = Path("/proc/self/status")
_SAME_RATE = {"h200": "h100", "gh200": "h100"}
"""Cards that are no names of `DEVICES`, whose data sheets give the same dense 16-bit rate as that of one."""

_OTHER_RATE = re.compile(r"\b(pcie|nvl|max-q|laptop)\b")
"""Variants that are slower than the card that has the name alone."""


def device() -> str:
    """`cuda` or `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def half_dtype() -> torch.dtype:
    """The 16-bit dtype that training computes in on this device."""
    bf16 = device() == "cpu" or torch.cuda.get_device_capability() >= (8, 0)
    return torch.bfloat16 if bf16 else torch.float16


def peak_flops(name: str) -> float | None:
    """Dense 16-bit operations in a second that a card of this name is published with; None if it is not known."""
    words = " ".join(name.lower().replace("-", " ").split())
    if _OTHER_RATE.search(name.lower()):
        return None
    known = {key: hardware.flops_16bit for key, hardware in DEVICES.items()}
    known |= {card: known[other] for card, other in _SAME_RATE.items()}
    patterns = {key: key.replace("-", " ").replace("rtx", "rtx ?") for key in known}
    found = [key for key, pattern in patterns.items() if re.search(rf"\b{pattern}\b", words)]
    return known[max(found, key=len)] if found else None


def machine() -> dict[str, Any]:
    """What this machine is and has installed."""
    hardware = detect_hardware()
    return {
        "device": device(),
        "name": hardware.name,
        "memory_bytes": hardware.memory_bytes,
        "capability": hardware.capability,
        "cpu_cores": hardware.cpu_cores,
        "peak_flops": peak_flops(hardware.name) if device() == "cuda" else None,
        "driver_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }


def limit_memory(room_bytes: int | None) -> None:
    """Let this process have only so many bytes: of the GPU, or on a CPU in addition to what it has now; None: all."""
    if device() == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if room_bytes is None else min(1.0, room_bytes / total))
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = most if room_bytes is None else pages * resource.getpagesize() + room_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def peak_bytes() -> int:
    """Most bytes that were allocated on the GPU since the count began, or were resident in this process."""
    if device() == "cuda":
        return int(torch.cuda.max_memory_allocated())
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
