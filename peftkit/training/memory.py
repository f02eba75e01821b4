"""The most memory that was in use at once."""

from __future__ import annotations

import resource
import sys

import torch

from peftkit.planning.hardware import Hardware

__all__ = ["peak_memory_bytes", "reset_peak_memory"]

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def reset_peak_memory(hardware: Hardware) -> None:
    """Start counting anew, where a device can; a process's largest resident set cannot be taken back."""
    if hardware.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes(hardware: Hardware) -> int:
    """Bytes allocated on the GPU at the most, or the process's largest resident set on a CPU."""
    if hardware.device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
