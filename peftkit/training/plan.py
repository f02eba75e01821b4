"""What a recipe will take: memory, time and room on the disk, before a run begins."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from peftkit import console
from peftkit.errors import RunError
from peftkit.models.attach import count_embeddings, count_parameters
from peftkit.models.attention import kernels_of
from peftkit.models.dtypes import WIDENED_BYTES
from peftkit.models.linear_cross_entropy import logits_bytes
from peftkit.models.outline import activation_parts, loss_parts, weight_bytes
from peftkit.models.quantization import backend_of
from peftkit.planning.decisions import decide
from peftkit.planning.duration import Schedule, computed_duration, duration, operations_of_a_token
from peftkit.planning.hardware import Hardware
from peftkit.planning.memory import CONTEXT_BYTES, WORKSPACE_BYTES, StepMemory, what_fits
from peftkit.planning.plan import Plan, disk_need
from peftkit.planning.processes import Place, share_of
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.methods import COMPARED
from peftkit.runs.folder import RunFolder
from peftkit.storage import free_bytes
from peftkit.training.memory import memory_limit
from peftkit.training.output import SAMPLE_TOKENS
from peftkit.training.prepare import Run, prepare_run
from peftkit.training.processes import Processes
from peftkit.training.rehearsal import Rehearsal, rehearse
from peftkit.training.signals import NEVER, StopRequest

__all__ = ["estimate", "plan", "plan_methods"]

_HOPELESS = 2
"""Where the estimate is so many times what there is, measuring would only end in a failure."""


def plan(
    file: RecipeFile,
    *,
    seconds: float | None,
    elsewhere: Hardware | None = None,
    processes: int = 1,
    stop: StopRequest = NEVER,
) -> Plan:
    """What a recipe will take.

    Args:
        file: the recipe.
        seconds: how long its steps are measured, in this process, whose peak memory they are; None computes all of it.
        elsewhere: a machine that is not here, for which all of it is computed; None for this one.
        processes: that train together on the machine, for each of which all of it is computed, if there are more.
        stop: asked between the steps that are measured.

    Raises:
        InputError: recipe, base or data are wrong.
        RunError: a step that was measured failed.
    """
    together = Processes(Place(count=processes, local_count=processes))
    hardware = replace(elsewhere, device_count=processes) if elsewhere else None
    run = prepare_run(file, together, elsewhere=hardware)
    found = estimate(run, hardware.memory_bytes if hardware else None)
    if seconds is None or hardware or together.are_many:
        return found
    if found.peak_memory_bytes > _HOPELESS * found.limit_bytes:
        console.warning(f"{found.method} is not measured: it would need far more memory than there is.")
        return found
    console.info(f"measuring {found.method} for about {seconds:.0f} s")
    run.stop = stop
    return _measured(found, run, _rehearsed(run, seconds))


def plan_methods(arguments: Sequence[str]) -> list[Plan]:
    """What a recipe takes by each method, each in a process of its own: memory once used is never taken back.

    Args:
        arguments: of `peftkit plan`, without the method.

    Raises:
        RunError: one of them failed, and has said why.
    """
    plans: list[Plan] = []
    for method in COMPARED:
        command = [sys.executable, "-m", "peftkit", "plan", *arguments, "--method", method, "--json"]
        heard = subprocess.PIPE if plans else None  # what is said of the data is the same each time
        if plans:
            console.info(f"and {method}")
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=heard, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stderr or "")
            raise RunError(f"cannot be planned by method {method}; its message stands above.", where=arguments[0])
        plans += [Plan.from_json(values) for values in json.loads(done.stdout)["plans"]]
    return plans


def estimate(run: Run, limit_bytes: int | None = None) -> Plan:
    """What a run will take, from its structure and its data alone.

    Args:
        run: the run.
        limit_bytes: memory that its machine has; None for what there is here.
    """
    recipe, training = run.recipe, run.recipe.training
    model = run.start.outline(recipe, run.base_dtype)
    kernels = kernels_of(model)
    limit = memory_limit(run.hardware) if limit_bytes is None else limit_bytes
    step = _step_memory(run, model, _limit_of_each(limit, run))
    memory = step.parts(step.rows, checkpointing=training.activation_checkpointing)
    as_it_is = step
    if training.activation_checkpointing:
        as_it_is = step.checkpointed()
    schedule, counts = Schedule(training, run.data.train.length), run.data.train.counts
    tokens = operations = None
    if run.data.train.length is not None:  # of a stream, nobody knows
        tokens = round(counts.tokens * schedule.steps / schedule.steps_per_epoch)
        operations = _operations(model, tokens, trains_all=not recipe.trains_adapter) // run.processes.count
    peak = sum(memory.values())
    return Plan(
        method=recipe.method,
        device=run.hardware.name,
        precision=run.precision,
        measured=False,
        trainable_parameters=step.trainable,
        total_parameters=step.total,
        processes=run.processes.count,
        sequences=run.data.train.length,
        steps=schedule.steps,
        epochs=schedule.epochs,
        train_tokens=tokens,
        memory=memory,
        peak_memory_bytes=peak,
        limit_bytes=step.limit_bytes,
        would_fit=what_fits(as_it_is, recipe) if peak > step.limit_bytes else [],
        disk=disk_need(training, step.trainable, run.data.train.length, count_embeddings(model, trained=True)),
        free_bytes=free_bytes(run.folder.path),
        train_seconds=computed_duration(run.hardware, run.precision, operations),
        decisions=decide(run.hardware, recipe, need=step, packed=run.data.train.packed, **kernels),
        warnings=list(run.data_warnings),
    )


def _limit_of_each(limit_bytes: int, run: Run) -> int:
    """Memory for one process: a GPU is its own, and what a machine without one has is shared."""
    return limit_bytes // run.processes.place.local_count if run.hardware.device == "cpu" else limit_bytes


def _step_memory(run: Run, model: Any, limit_bytes: int) -> StepMemory:
    """Of one of the processes, counted on a model without weights, which is used up."""
    recipe, training, processes = run.recipe, run.recipe.training, run.processes.count
    trainable, total = count_parameters(model)
    rows = share_of(training.per_device_train_batch_size, training.gradient_accumulation_steps, processes).rows
    longest = int(run.data.train.sequences.lengths.max())
    base_bytes = weight_bytes(model, recipe.base_quantization)
    saved = base_bytes if run.is_sharded else 0  # by the main process, on the CPU
    on_cpu = run.hardware.device == "cpu"
    vocabulary = model.config.vocab_size
    of_loss, of_token = loss_parts(model, run.precision, run.hardware.device)
    fixed, row = activation_parts(model, longest, run.precision, run.hardware)
    return StepMemory(
        base_bytes=base_bytes,
        trainable=trainable,
        total=total,
        embeddings=count_embeddings(model),
        row_bytes=row + of_token * longest,
        fixed_bytes=fixed + of_loss,
        rows=rows,
        layers=int(getattr(model.config, "num_hidden_layers", 1)),
        limit_bytes=limit_bytes,
        optim=training.optim,
        logits_bytes=logits_bytes(vocabulary, rows * longest),
        end_bytes=0 if run.is_sharded else WIDENED_BYTES + logits_bytes(vocabulary, SAMPLE_TOKENS),
        processes=processes,
        is_sharded=run.is_sharded,
        quantised_bytes=backend_of(recipe.quantization).bytes_of_a_weight(recipe.quantization),
        runtime_bytes=_resident_bytes() + saved if on_cpu else CONTEXT_BYTES + WORKSPACE_BYTES,
    )


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _operations(model: Any, tokens: int, *, trains_all: bool) -> int:
    """Additions and multiplications of all processes in all steps together."""
    _, total = count_parameters(model)
    weights = total - count_embeddings(model) + model.get_output_embeddings().weight.numel()
    return tokens * operations_of_a_token(weights, trains_all=trains_all)


def _measured(found: Plan, run: Run, rehearsal: Rehearsal) -> Plan:
    """A plan with what was measured in the place of what was computed."""
    known = {
        "weights": rehearsal.weights_bytes,
        "gradients": found.memory["gradients"],
        "optimizer": found.memory["optimizer"],
        "activations": rehearsal.activations_bytes,
        "logits": found.memory["logits"],
        "end": found.memory["end"],
    }
    peak = rehearsal.peak_memory_bytes + found.memory["end"]
    return replace(
        found,
        measured=True,
        memory={**known, "runtime": max(0, peak - sum(known.values()))},
        peak_memory_bytes=peak,
        train_seconds=duration(rehearsal.pace, Schedule(run.recipe.training, run.data.train.length)),
    )


def _rehearsed(run: Run, seconds: float) -> Rehearsal:
    with tempfile.TemporaryDirectory(prefix="peftkit-plan-") as name, console.silenced():
        model = run.load()
        there = replace(run, folder=RunFolder(Path(name) / "run"))
        with there.folder.created(there.file.resolved_yaml(), there.manifest):
            return rehearse(model, there, seconds)
