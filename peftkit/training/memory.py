"""The most memory that was in use at once, and what to say when there was not enough."""

from __future__ import annotations

import resource
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from peftkit import console
from peftkit.data.collator import INPUTS
from peftkit.errors import MemoryRunError
from peftkit.models.attach import count_embeddings, count_parameters
from peftkit.models.device import free_memory
from peftkit.models.linear_cross_entropy import logits_bytes
from peftkit.models.outline import held_bytes, kept_for_backward, loss_parts
from peftkit.planning.hardware import Hardware
from peftkit.planning.memory import Fit, GpuMemory, StepMemory, fitting_batch, fixed_and_row, what_fits
from peftkit.recipe.schema import Recipe
from peftkit.shortage import is_out_of_memory, memory_for

__all__ = ["evaluating", "memory_limit", "peak_memory_bytes", "reset_peak_memory", "shortage"]

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_STATUS = Path("/proc/self/status")


def reset_peak_memory(hardware: Hardware) -> None:
    """Start counting anew, where a device can; a process's largest resident set cannot be taken back."""
    if hardware.device == "cuda":
        free_memory()  # what was reserved while the weights were loaded would count as needed
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes(hardware: Hardware) -> int:
    """Bytes of the GPU that this process had at the most, or its largest resident set on a CPU.

    On an NVIDIA GPU they are what torch reserved, gaps between tensors included, and the context. Apple's GPUs count no
    peak: it is what the driver has given, of which little is given back.
    """
    if hardware.device == "cuda":
        return int(torch.cuda.max_memory_reserved()) + _gpu().context_bytes
    if hardware.device == "mps":
        return int(torch.mps.driver_allocated_memory())
    return _largest_resident_set()


def _gpu() -> GpuMemory:
    """The current GPU's memory as it is now."""
    free, total = torch.cuda.mem_get_info()
    return GpuMemory(total, free, torch.cuda.memory_reserved(), torch.cuda.get_per_process_memory_fraction())


def _largest_resident_set() -> int:
    """As Linux counts it for a program; what `getrusage` says began with that of the process that started it."""
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def evaluating(rows: int) -> AbstractContextManager[None]:
    """What an evaluation of so many rows at a time is computed within, to say what would fit where memory is short."""
    if rows > 1:
        remedy = "Lower training.per_device_eval_batch_size, which changes no result; --auto-batch finds one that fits."
    else:
        remedy = "Lower data.max_length, or use method: qlora or a smaller base."
    batch = "one row" if rows == 1 else f"{rows} rows at a time"
    return memory_for(f"the evaluation of {batch}", where="evaluation", remedy=remedy, batch="evaluation")


def shortage(trainer: Any, inputs: dict[str, Any] | None, recipe: Recipe, hardware: Hardware) -> MemoryRunError:
    """What to report after a step that did not fit: its peak, and the changes after which it would, with their figures.

    They rest on one row and on two rows of the batch, computed again to see how much each keeps for the backward pass.
    A process that has only a part of the weights cannot do that: the others are in the middle of the step.

    Args:
        trainer: of the step. It cannot go on after an optimizer step that did not fit.
        inputs: the batch whose pass did not fit; None where it was the optimizer step, or what precedes the first pass.
        recipe: what the run does.
        hardware: the machine.
    """
    peak, batch = peak_memory_bytes(hardware), inputs or trainer.newest_inputs
    line = f"{_what(inputs, batch)} does not fit into memory: {console.size(peak)} were in use"
    if trainer.weights.are_sharded:
        remedy = "Use more processes, activation_checkpointing: true, or a smaller batch with more accumulation."
        return MemoryRunError(f"{line}.", where="training", remedy=remedy)
    if batch is None:
        remedy = "Free memory that others use, or use method: lora or qlora, or a smaller base."
        return MemoryRunError(f"{line}.", where="training", remedy=remedy)
    _give_back(trainer, optimizer=inputs is None)
    try:
        step = _measured(trainer, batch, recipe, hardware)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        remedy = "Lower data.max_length, or use method: qlora or a smaller base."
        return MemoryRunError(f"{line}, and not even one row fits.", where="training", remedy=remedy)
    return _told(line, step, recipe, in_pass=inputs is not None)


def _what(inputs: dict[str, Any] | None, newest: dict[str, Any] | None) -> str:
    if newest is None:
        return "what training needs beside the weights"
    if inputs is None:
        return "an optimizer step"
    rows, tokens = inputs["input_ids"].shape
    return f"a step of {'one row' if rows == 1 else f'{rows} rows'} of {tokens:,} tokens"


def _told(line: str, step: StepMemory, recipe: Recipe, *, in_pass: bool) -> MemoryRunError:
    """The error, once it is known what a step needs: the more rows the less fits, but for an optimizer step's own."""
    needed, alone = step.peak_bytes(step.rows), replace(step, logits_bytes=0).peak_bytes(0)
    line += f", about {console.size(needed)} are needed, and {console.size(step.limit_bytes)} are there."
    if not in_pass and alone > step.limit_bytes:
        line += f" Without any row, {console.size(alone)} are needed, so that no smaller batch would fit."
    helps = in_pass or alone <= step.limit_bytes
    smaller = fitting_batch(step.fits, step.rows, 1)
    return MemoryRunError(
        line,
        where="training",
        remedy=_advice(what_fits(step, recipe)),
        batch="training" if helps else None,
        rows=smaller[0] if smaller else None,
    )


def _give_back(trainer: Any, *, optimizer: bool) -> None:
    """Free gradients and, where it is not needed any more, the optimizer's state."""
    trainer.model.zero_grad()
    if optimizer and trainer.optimizer is not None:
        trainer.optimizer.state.clear()
    free_memory()


def _advice(fits: list[Fit]) -> str:
    if not fits:
        return "Nothing that changes the batch alone would fit: lower data.max_length, or use a smaller base."
    choices = "; or ".join(f"{fit.change} (about {console.size(fit.peak_bytes)})" for fit in fits)
    line = f"It would fit with {choices}."
    return f"{line} --auto-batch finds a batch by itself." if "batch_size" in fits[0].change else line


def _measured(trainer: Any, inputs: dict[str, Any], recipe: Recipe, hardware: Hardware) -> StepMemory:
    model, (rows, tokens) = trainer.model, inputs["input_ids"].shape
    trainable, total = count_parameters(model)
    fixed, row = _kept(trainer, inputs)
    of_loss, of_token = loss_parts(model, trainer.precision, hardware.device)
    return StepMemory(
        base_bytes=held_bytes(model),
        trainable=trainable,
        total=total,
        embeddings=count_embeddings(model),
        row_bytes=row + of_token * tokens,
        fixed_bytes=fixed + of_loss,
        rows=rows,
        layers=int(getattr(model.config, "num_hidden_layers", 1)),
        limit_bytes=memory_limit(hardware),
        optim=recipe.training.optim,
        logits_bytes=logits_bytes(model.config.vocab_size, rows * tokens),
        runtime_bytes=_gpu().context_bytes if hardware.device == "cuda" else 0,
    )


def _kept(trainer: Any, inputs: dict[str, Any]) -> tuple[int, int]:
    """Bytes kept for the backward pass whatever the rows, and for each row of a batch.

    Where two rows do not fit, all that one keeps counts as the row's: nothing but one row at a time fits then.
    """
    one = _kept_for_rows(trainer, inputs, 1)
    if len(inputs["input_ids"]) == 1:
        return 0, one
    try:
        two = _kept_for_rows(trainer, inputs, 2)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return 0, one
    return fixed_and_row(one, two)


def _kept_for_rows(trainer: Any, inputs: dict[str, Any], rows: int) -> int:
    batch = {name: inputs[name][:rows] for name in INPUTS if name in inputs}
    with kept_for_backward(trainer.model) as kept, trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch | {"use_cache": False})
    del loss
    return sum(kept.values())


def memory_limit(hardware: Hardware) -> int:
    """Memory that this process may have: of the GPU, or the least of what is free and what limits allow.

    Of an NVIDIA GPU it is what is free, what this process has already, and its context.
    """
    if hardware.device == "cuda":
        return _gpu().limit_bytes
    if hardware.device == "mps":
        return hardware.memory_bytes
    used = psutil.Process().memory_info()
    limits = [psutil.virtual_memory().available + used.rss]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        limits.append(most - (used.vms - used.rss))  # it counts what is only reserved, too
    if _GROUP_LIMIT.is_file() and (text := _GROUP_LIMIT.read_text(encoding="ascii").strip()).isdigit():
        limits.append(int(text))
    return max(0, min(limits))
