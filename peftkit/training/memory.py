"""The peak of the memory in use, what to report where it was not enough, and how `--auto-batch` makes a step fit."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from peftkit import console
from peftkit.data.collator import INPUTS
from peftkit.errors import MemoryRunError
from peftkit.models.attach import count_embeddings, count_parameters
from peftkit.models.device import free_memory
from peftkit.models.linear_cross_entropy import logits_bytes
from peftkit.models.outline import held_bytes, kept_for_backward, loss_parts
from peftkit.planning.decisions import ChosenPrecision
from peftkit.planning.hardware import Device, Hardware
from peftkit.planning.memory import Fit, GpuMemory, StepMemory, fitting_batch, fixed_and_row, what_fits
from peftkit.recipe.hyperparameters import Training
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.schema import Recipe
from peftkit.shortage import forget_frames, is_out_of_memory, memory_for

__all__ = [
    "as_found", "beyond_auto_batch", "describe_batches", "evaluating", "kept_for_rows", "memory_limit",
    "peak_memory_bytes", "reset_peak_memory", "shortage", "smaller_batch", "step_memory", "within_memory",
]  # fmt: skip

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_STATUS = Path("/proc/self/status")
_TRAINING = ("per_device_train_batch_size", "gradient_accumulation_steps")
_EVALUATION = "per_device_eval_batch_size"

_Found = TypeVar("_Found")


def reset_peak_memory(hardware: Hardware) -> None:
    """Reset the peak, where a device can; a process's largest resident set cannot be reset."""
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
    # as Linux counts it for a program; what `getrusage` says began with that of the process that started it
    for line in _STATUS.read_text(encoding="utf-8", errors="replace").splitlines() if _STATUS.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


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


def _gpu() -> GpuMemory:
    free, total = torch.cuda.mem_get_info()
    return GpuMemory(total, free, torch.cuda.memory_reserved(), torch.cuda.get_per_process_memory_fraction())


def evaluating(rows: int) -> AbstractContextManager[None]:
    """The context of an evaluation of so many rows at a time, which says what would fit where memory is short."""
    if rows > 1:
        remedy = "Lower training.per_device_eval_batch_size, which changes no result; --auto-batch finds one that fits."
    else:
        remedy = "Lower data.max_length, or use method: qlora or a smaller base."
    batch = "one row" if rows == 1 else f"{rows} rows at a time"
    return memory_for(f"the evaluation of {batch}", where="evaluation", remedy=remedy, batch="evaluation")


def within_memory(trainer: Any, compute: Callable[[], _Found], inputs: dict[str, Any] | None) -> _Found:
    """Call what computes a pass over some inputs or, where these are None, optimizer steps.

    It is no context manager, whose `__exit__` would hold the frames of an error, and so the memory that it is about.

    Raises:
        MemoryRunError: it did not fit; `moved` where an optimizer step may have changed some weights already.
    """
    try:
        return compute()
    except MemoryRunError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        forget_frames(error)
        short = error
    found = shortage(trainer, inputs, trainer.run.recipe, trainer.run.hardware)
    found.moved = inputs is None
    raise found from short


def shortage(trainer: Any, inputs: dict[str, Any] | None, recipe: Recipe, hardware: Hardware) -> MemoryRunError:
    """What to report after a step that did not fit: its peak, and the changes after which it would, with their figures.

    They rest on one row and on two rows of the batch, computed again to see how much each keeps for the backward pass.
    A process that has only a part of the weights cannot do that: the others are in the middle of the step.

    `inputs` is the batch whose pass did not fit; None where it was the optimizer step, after which the trainer cannot
    be used any more, or what precedes the first pass.
    """
    peak, batch = peak_memory_bytes(hardware), inputs or trainer.newest_inputs
    line = f"{_what(inputs, batch)} does not fit into memory: {console.size(peak)} were in use"
    if trainer.weights.are_sharded:
        remedy = "Use more processes, activation_checkpointing: true, or a smaller batch with more accumulation."
        return MemoryRunError(f"{line}.", where="training", remedy=remedy)
    if batch is None:
        remedy = "Free memory that others use, or use method: lora or qlora, or a smaller base."
        return MemoryRunError(f"{line}.", where="training", remedy=remedy)
    trainer.model.zero_grad()
    if inputs is None and trainer.optimizer is not None:
        trainer.optimizer.state.clear()  # not needed any more
    free_memory()
    try:
        step = step_memory(
            trainer.model,
            batch["input_ids"].shape,
            _kept(trainer, batch),
            trainer.precision,
            hardware.device,
            base_bytes=held_bytes(trainer.model),
            limit_bytes=memory_limit(hardware),
            optim=recipe.training.optim,
            runtime_bytes=_gpu().context_bytes if hardware.device == "cuda" else 0,
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        remedy = "Lower data.max_length, or use method: qlora or a smaller base."
        return MemoryRunError(f"{line}, and not even one row fits.", where="training", remedy=remedy)
    return _measured_shortage(line, step, what_fits(step, recipe), in_pass=inputs is not None)


def _what(inputs: dict[str, Any] | None, newest: dict[str, Any] | None) -> str:
    if newest is None:
        return "what training needs besides the weights"
    if inputs is None:
        return "an optimizer step"
    rows, tokens = inputs["input_ids"].shape
    return f"a step of {'one row' if rows == 1 else f'{rows} rows'} of {tokens:,} tokens"


def _measured_shortage(line: str, step: StepMemory, fits: list[Fit], *, in_pass: bool) -> MemoryRunError:
    """The error with the figures of a step. Fewer rows always help a pass, but not always an optimizer step."""
    needed, alone = step.peak_bytes(step.rows), replace(step, logits_bytes=0).peak_bytes(0)
    line += f", about {console.size(needed)} are needed, and {console.size(step.limit_bytes)} are there."
    helps = in_pass or alone <= step.limit_bytes
    if not helps:
        line += f" Without any row, {console.size(alone)} are needed, so that no smaller batch would fit."
    remedy = "Nothing that changes the batch alone would fit: lower data.max_length, or use a smaller base."
    if fits:
        choices = "; or ".join(f"{fit.change} (about {console.size(fit.peak_bytes)})" for fit in fits)
        remedy = f"It would fit with {choices}."
        if "batch_size" in fits[0].change:
            remedy += " --auto-batch finds a batch by itself."
    smaller = fitting_batch(step.fits, step.rows, 1)
    rows = smaller[0] if smaller else None
    return MemoryRunError(line, where="training", remedy=remedy, batch="training" if helps else None, rows=rows)


def step_memory(
    model: Any, shape: tuple[int, int], kept: tuple[int, int], precision: ChosenPrecision, device: Device, **more: Any
) -> StepMemory:
    """What a step needs, by a model with or without weights and the shape of its batches, [rows, tokens].

    `kept` is kept for the backward pass up to the hidden states, whatever the rows, and for each row, in bytes. `more`
    are other fields of `StepMemory`.
    """
    rows, tokens = shape
    trainable, total = count_parameters(model)
    of_loss, of_token = loss_parts(model, precision, device)
    return StepMemory(
        trainable=trainable,
        total=total,
        embeddings=count_embeddings(model),
        row_bytes=kept[1] + of_token * tokens,
        fixed_bytes=kept[0] + of_loss,
        rows=rows,
        layers=int(getattr(model.config.get_text_config(), "num_hidden_layers", 1)),
        logits_bytes=logits_bytes(model.config.get_text_config().vocab_size, rows * tokens),
        **more,
    )


def _kept(trainer: Any, inputs: dict[str, Any]) -> tuple[int, int]:
    """Bytes kept for the backward pass whatever the rows, and for each row of a batch.

    Where two rows do not fit, all that one keeps counts as the row's: nothing but one row at a time fits then.
    """
    one = kept_for_rows(trainer, inputs, 1)[0]
    if len(inputs["input_ids"]) == 1:
        return 0, one
    try:
        two = kept_for_rows(trainer, inputs, 2)[0]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return 0, one
    return fixed_and_row(one, two)


def kept_for_rows(trainer: Any, inputs: dict[str, Any], rows: int | None = None) -> tuple[int, torch.Tensor]:
    """Bytes that the forward pass of a batch, or of its first rows, keeps for the backward pass; and its loss."""
    batch = {name: inputs[name][:rows] for name in INPUTS if name in inputs}
    with kept_for_backward(trainer.model) as kept, trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch | {"use_cache": False})
    return sum(kept.values()), loss


def smaller_batch(
    training: Training, error: MemoryRunError, found: dict[str, list[int]] | None
) -> tuple[dict[str, int], dict[str, list[int]]] | None:
    """Half of the batch that did not fit, or as many rows as would, in the same optimizer steps.

    Returns:
        The hyperparameters that change, and `auto_batch` of the manifest, so far `found`; None where no batch can be
        smaller.
    """
    before = [training.per_device_train_batch_size, training.gradient_accumulation_steps]
    if error.batch is None:
        return None
    if error.batch == "evaluation":
        rows = training.per_device_eval_batch_size // 2
        known = found or {"recipe": before, "used": before}
        first = known.get("evaluation", [training.per_device_eval_batch_size])[0]
        return ({_EVALUATION: rows}, {**known, "evaluation": [first, rows]}) if rows else None
    smaller = fitting_batch(lambda rows: error.rows is None or rows <= error.rows, *before)
    if smaller is None:
        return None
    return dict(zip(_TRAINING, smaller, strict=True)), {"recipe": before, **(found or {}), "used": list(smaller)}


def as_found(file: RecipeFile, found: dict[str, list[int]] | None) -> RecipeFile:
    """A recipe with the batches that were found to fit, if it has those from which they were found."""
    training = file.recipe.training
    changes: dict[str, int] = {}
    if found and [getattr(training, name) for name in _TRAINING] == found["recipe"]:
        changes |= zip(_TRAINING, found["used"], strict=True)
    if found and "evaluation" in found and training.per_device_eval_batch_size == found["evaluation"][0]:
        changes[_EVALUATION] = found["evaluation"][1]
    return file.with_training(changes) if changes else file


def describe_batches(training: Training) -> str:
    """How many rows are computed at a time."""
    rows, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    batch = "one row" if rows == 1 else f"{rows} rows"
    evaluated = training.per_device_eval_batch_size
    return f"{batch} at a time, accumulated {accumulation} times, and {evaluated} at a time in evaluations."


@contextmanager
def beyond_auto_batch(*, asked: bool) -> Iterator[None]:
    """Explain why --auto-batch cannot help, where memory is short within the block and it was asked for."""
    try:
        yield
    except MemoryRunError as error:
        if asked:
            why = f"the {error.batch} batch is one row already" if error.batch else "no batch has a part in this"
            error.remedy = f"{error.remedy or ''} --auto-batch cannot help: {why}.".strip()
        raise
