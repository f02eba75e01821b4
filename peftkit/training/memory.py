"""The most memory that was in use at once, and what to say when there was not enough."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from peftkit import console
from peftkit.errors import MemoryRunError
from peftkit.models.attach import count_embeddings, count_parameters
from peftkit.models.outline import held_bytes, kept_for_backward
from peftkit.planning.hardware import Hardware
from peftkit.planning.memory import Fit, StepMemory, what_fits
from peftkit.recipe.schema import Recipe

__all__ = ["is_out_of_memory", "memory_limit", "peak_memory_bytes", "reset_peak_memory", "shortage"]

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
_TEXTS = ("can't allocate memory", "cannot allocate memory", "not enough memory", "mps backend out of memory")
_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_STATUS = Path("/proc/self/status")


def reset_peak_memory(hardware: Hardware) -> None:
    """Start counting anew, where a device can; a process's largest resident set cannot be taken back."""
    if hardware.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes(hardware: Hardware) -> int:
    """Bytes allocated on the GPU at the most, or the process's largest resident set on a CPU.

    Apple's GPUs count no peak: it is what the driver has given, of which little is given back.
    """
    if hardware.device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    if hardware.device == "mps":
        return int(torch.mps.driver_allocated_memory())
    return _largest_resident_set()


def _largest_resident_set() -> int:
    """As Linux counts it for a program; what `getrusage` says began with that of the process that started it."""
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _TEXTS)


def shortage(trainer: Any, inputs: dict[str, Any], recipe: Recipe, hardware: Hardware) -> MemoryRunError:
    """What to tell after a step that did not fit: its peak, and the changes after which it would, with their figures.

    Those rest on one row of the batch, which is computed again to see how much it keeps for the backward pass. A
    process that has only a part of the weights cannot do that: the others are in the middle of the step.
    """
    trainer.model.zero_grad()
    if hardware.device == "cuda":
        torch.cuda.empty_cache()
    elif hardware.device == "mps":
        torch.mps.empty_cache()
    rows, tokens = inputs["input_ids"].shape
    peak, limit = peak_memory_bytes(hardware), memory_limit(hardware)
    batch = "one row" if rows == 1 else f"{rows} rows"
    line = f"a step of {batch} of {tokens:,} tokens does not fit into memory: {console.size(peak)} were in use"
    if trainer.weights.are_sharded:
        remedy = "Use more processes, activation_checkpointing: true, or a smaller batch with more accumulation."
        return MemoryRunError(f"{line}.", where="training", remedy=remedy)
    try:
        step = _measured(trainer, inputs, recipe, limit)
    except (RuntimeError, MemoryError):
        return MemoryRunError(
            f"{line}, and not even one row fits.",
            where="training",
            remedy="Lower data.max_length, or use method: qlora or a smaller base.",
        )
    fits = what_fits(step, recipe)
    line += f", about {console.size(step.peak_bytes(rows))} are needed, and {console.size(limit)} are there."
    return MemoryRunError(line, where="training", remedy=_advice(fits))


def _advice(fits: list[Fit]) -> str:
    if not fits:
        return "Nothing that changes the batch alone would fit: lower data.max_length, or use a smaller base."
    choices = "; or ".join(f"{fit.change} (about {console.size(fit.peak_bytes)})" for fit in fits)
    line = f"It would fit with {choices}."
    return f"{line} --auto-batch finds a batch by itself." if "batch_size" in fits[0].change else line


def _measured(trainer: Any, inputs: dict[str, Any], recipe: Recipe, limit: int) -> StepMemory:
    model = trainer.model
    trainable, total = count_parameters(model)
    row = {name: values[:1] for name, values in inputs.items() if name not in ("numbers", "num_tokens")}
    with kept_for_backward(model) as kept, trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(model, row | {"use_cache": False})
    del loss
    return StepMemory(
        base_bytes=held_bytes(model),
        trainable=trainable,
        total=total,
        embeddings=count_embeddings(model),
        row_bytes=sum(kept.values()),
        rows=len(inputs["input_ids"]),
        layers=int(getattr(model.config, "num_hidden_layers", 1)),
        limit_bytes=limit,
        optim=recipe.training.optim,
    )


def memory_limit(hardware: Hardware) -> int:
    """Memory that this process may have: of the GPU, or the least of what is free and what limits allow."""
    if hardware.device != "cpu":
        return hardware.memory_bytes
    used = psutil.Process().memory_info()
    limits = [psutil.virtual_memory().available + used.rss]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        limits.append(most - (used.vms - used.rss))  # it counts what is only reserved, too
    if _GROUP_LIMIT.is_file() and (text := _GROUP_LIMIT.read_text(encoding="ascii").strip()).isdigit():
        limits.append(int(text))
    return max(0, min(limits))
