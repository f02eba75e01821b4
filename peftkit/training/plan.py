"""What a recipe will take before a run begins: computed from its structure and data, or measured on a few steps."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.data import Subset
from transformers import TrainerCallback, set_seed

from peftkit import console
from peftkit.data.collator import INPUTS
from peftkit.data.prepare import Prepared
from peftkit.errors import RunError
from peftkit.models.attach import count_embeddings
from peftkit.models.attention import kernels_of
from peftkit.models.dtypes import WIDENED_BYTES
from peftkit.models.kernels import use_fast_kernels
from peftkit.models.linear_cross_entropy import logits_bytes
from peftkit.models.loss import evaluate_loss
from peftkit.models.outline import UncountedError, activation_parts, held_bytes, weight_bytes
from peftkit.models.quantization import backend_of
from peftkit.planning.decisions import decide
from peftkit.planning.hardware import Hardware
from peftkit.planning.memory import CONTEXT_BYTES, WORKSPACE_BYTES, StepMemory, what_fits
from peftkit.planning.plan import Plan, Schedule, computed_duration, disk_need, duration, operations_of_a_token
from peftkit.planning.processes import share_of
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.methods import COMPARED
from peftkit.runs.folder import RunFolder
from peftkit.storage import free_bytes
from peftkit.training.memory import (
    evaluating,
    kept_for_rows,
    memory_limit,
    peak_memory_bytes,
    reset_peak_memory,
    step_memory,
    within_memory,
)
from peftkit.training.output import SAMPLE_TOKENS
from peftkit.training.prepare import Run, load_isolated, prepare_run
from peftkit.training.processes import NEVER, Processes, StopRequest
from peftkit.training.train import build_trainer, train_from
from peftkit.training.trainer import TokenTrainer

__all__ = ["estimate", "plan", "plan_methods"]

_HOPELESS = 2
"""Where the estimate is so many times what there is, measuring would only end in a failure."""

_LEAST, _MOST = 3, 40
"""Steps that are measured: two say something about a third."""

_EVALUATION_BATCHES = 6
_WITHOUT = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}


def plan(
    file: RecipeFile,
    *,
    seconds: float | None,
    elsewhere: Hardware | None = None,
    processes: int = 1,
    stop: StopRequest = NEVER,
) -> Plan:
    """What a recipe will take.

    Its steps are measured for so many `seconds`, in this process, whose peak memory they are. All of it is computed if
    these are None, for a machine `elsewhere`, and for each of several `processes` that train together.

    Raises:
        InputError: recipe, base or data are wrong.
        RunError: a step that was measured failed.
    """
    together = Processes(count=processes, local_count=processes)
    hardware = replace(elsewhere, device_count=processes) if elsewhere else None
    run = prepare_run(file, together, elsewhere=hardware)
    limit = hardware.memory_bytes if hardware else None
    found = estimate(run, limit)
    if seconds is None or hardware or together.are_many:
        return found
    if found.peak_memory_bytes > _HOPELESS * found.limit_bytes:
        console.warning(f"{found.method} is not measured: it would need far more memory than there is.")
        return found
    console.info(f"measuring {found.method} for about {seconds:.0f} s")
    with tempfile.TemporaryDirectory(prefix="peftkit-plan-") as name, console.silenced():
        run, live = load_isolated(run, partial(prepare_run, processes=together, elsewhere=hardware))
        found = estimate(run, limit) if run.recipe.data.packing is not file.recipe.data.packing else found
        there = replace(run, folder=RunFolder(Path(name) / "run"), stop=stop)
        with there.folder.created(there.file.resolved_yaml(), there.manifest):
            return _measured(found, there, live.model, seconds)


def plan_methods(arguments: Sequence[str]) -> list[Plan]:
    """What `peftkit plan` says of each method, each in a process of its own: memory once used is never given back.

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
    """What a run will take, from its structure and data alone, on a machine with so much memory, or on this one."""
    recipe, training, train = run.recipe, run.recipe.training, run.data.train
    with run.file.locating():
        model = run.start.outline(recipe, run.base_dtype)
    kernels = kernels_of(model)
    longest = int(train.sequences.lengths.max())
    kept, uncounted = (0, 0), None
    try:
        kept = activation_parts(model, longest, run.precision, run.hardware)
    except UncountedError as error:
        uncounted = str(error)
    step = _step_memory(run, model, longest, kept, memory_limit(run.hardware) if limit_bytes is None else limit_bytes)
    memory = step.parts(step.rows, checkpointing=training.activation_checkpointing)
    peak = sum(memory.values())
    as_it_is = step.checkpointed() if training.activation_checkpointing else step
    schedule = Schedule(training, train.length)
    tokens = operations = None
    if train.length is not None:  # of a stream, nobody knows
        tokens = round(train.counts.tokens * schedule.steps / schedule.steps_per_epoch)
        weights = step.total - count_embeddings(model) + model.get_output_embeddings().weight.numel()
        each = operations_of_a_token(weights, trains_all=not recipe.trains_adapter)
        operations = tokens * each // run.processes.count
    return Plan(
        method=recipe.method,
        device=run.hardware.name,
        precision=run.precision,
        measured=False,
        trainable_parameters=step.trainable,
        total_parameters=step.total,
        processes=run.processes.count,
        sequences=train.length,
        steps=schedule.steps,
        epochs=schedule.epochs,
        train_tokens=tokens,
        memory=memory,
        peak_memory_bytes=peak,
        limit_bytes=step.limit_bytes,
        would_fit=what_fits(as_it_is, recipe) if peak > step.limit_bytes and not uncounted else [],
        disk=disk_need(schedule, step.trainable, count_embeddings(model, trained=True)),
        free_bytes=free_bytes(run.folder.path),
        train_seconds=computed_duration(run.hardware, run.precision, operations),
        decisions=decide(run.hardware, recipe, need=None if uncounted else step, packed=train.packed, **kernels),
        warnings=list(run.data_warnings),
        uncounted=uncounted,
    )


def _step_memory(run: Run, model: Any, longest: int, kept: tuple[int, int], limit_bytes: int) -> StepMemory:
    """Of one of the processes, counted on a model without weights, for rows of the longest length.

    For `kept`, see `activation_parts`.
    """
    recipe, training, processes = run.recipe, run.recipe.training, run.processes
    on_cpu = run.hardware.device == "cpu"
    rows = share_of(training.per_device_train_batch_size, training.gradient_accumulation_steps, processes.count).rows
    base_bytes = weight_bytes(model, recipe.base_quantization)
    saved = base_bytes if run.is_sharded else 0  # by the main process, on the CPU
    resident = int(psutil.Process().memory_info().rss)
    vocabulary = model.config.get_text_config().vocab_size
    end_bytes = 0 if run.is_sharded else WIDENED_BYTES + logits_bytes(vocabulary, SAMPLE_TOKENS)
    return step_memory(
        model,
        (rows, longest),
        kept,
        run.precision,
        run.hardware.device,
        base_bytes=base_bytes,
        limit_bytes=limit_bytes // (processes.local_count if on_cpu else 1),  # a machine without a GPU is shared
        optim=training.optim,
        end_bytes=end_bytes,
        processes=processes.count,
        is_sharded=run.is_sharded,
        quantised_bytes=backend_of(recipe.quantization).bytes_of_a_weight(recipe.quantization),
        runtime_bytes=resident + saved if on_cpu else CONTEXT_BYTES + WORKSPACE_BYTES,
    )


def _measured(found: Plan, run: Run, model: Any, seconds: float) -> Plan:
    """The plan with measurements of about so many seconds of training, with the run's longest batches.

    The model is changed, and the run folder may be given a checkpoint: both are thrown away.

    Raises:
        RunError: a step does not fit into memory, or a loss is not finite.
    """
    training = run.recipe.training
    set_seed(training.seed)
    use_fast_kernels(model, run.hardware)
    reset_peak_memory(run.hardware)
    trainer = build_trainer(model, replace(run, file=run.file.with_training(_WITHOUT)))
    clock = _Clock(seconds)
    trainer.add_callback(clock)
    evaluation = _evaluation_seconds(trainer, run.data.validation) if run.data.validation else 0.0
    try:
        train_from(trainer, None)
        kept = _longest_step(trainer, run.data.train)
        save = _save_seconds(trainer) if training.save_strategy != "no" else 0.0
    finally:
        trainer.finish_checkpoints()
    memory = {**found.memory, "weights": held_bytes(model), "activations": kept, "runtime": 0}
    peak = peak_memory_bytes(run.hardware) + found.memory["end"]
    return replace(
        found,
        measured=True,
        uncounted=None,
        memory={**memory, "runtime": max(0, peak - sum(memory.values()))},
        peak_memory_bytes=peak,
        train_seconds=duration(Schedule(training, run.data.train.length), clock.step_seconds, evaluation, save),
    )


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Measures the time of each step, and ends the training when enough is known."""

    def __init__(self, seconds: float) -> None:
        self._budget = seconds
        self._marks: list[float] = []

    @property
    def step_seconds(self) -> tuple[float, ...]:
        """Of each step but the first; of that one where there is no other."""
        found = tuple(float(each) for each in np.diff(self._marks))
        return found[1:] or found

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._marks.append(time.perf_counter())

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        self._marks.append(time.perf_counter())
        measured = len(self._marks) - 2
        late = self._marks[-1] - self._marks[0] > self._budget
        if (late and measured >= _LEAST) or measured >= _MOST:
            control.should_training_stop = True


def _longest_step(trainer: TokenTrainer, train: Prepared) -> int:
    """Bytes kept by a forward and backward pass of the longest rows, while the optimizer's state is there."""
    batch = _longest(trainer, train, trainer.args.per_device_train_batch_size)
    inputs = {name: batch[name].to(trainer.args.device) for name in INPUTS if name in batch}
    trainer.model.train()

    def compute() -> int:
        kept, loss = kept_for_rows(trainer, inputs)
        trainer.accelerator.backward(loss)
        trainer.model.zero_grad()
        return kept

    return within_memory(trainer, compute, inputs)


def _longest(trainer: TokenTrainer, prepared: Prepared, rows: int) -> dict[str, torch.Tensor]:
    order = np.argsort(-prepared.sequences.lengths, kind="stable")[:rows]
    batch: dict[str, torch.Tensor] = trainer.data_collator([prepared.sequences[int(index)] for index in order])
    return batch


def _evaluation_seconds(trainer: TokenTrainer, validation: Prepared) -> float:
    """Of all validation data once, from batches all over it, after a batch of the longest rows."""
    rows = trainer.args.per_device_eval_batch_size
    with evaluating(rows):
        evaluate_loss(trainer.model, [_longest(trainer, validation, rows)], trainer.precision)
    sequences = validation.sequences
    batches = -(-len(sequences) // rows)
    chosen = np.unique(np.linspace(0, batches - 1, _EVALUATION_BATCHES).astype(int))
    indices = [index for batch in chosen for index in range(batch * rows, min((batch + 1) * rows, len(sequences)))]
    start = time.perf_counter()
    subset: Any = Subset(sequences, indices)  # type: ignore[arg-type]
    evaluate_loss(trainer.model, trainer.get_eval_dataloader(subset), trainer.precision)
    return (time.perf_counter() - start) * len(sequences) / len(indices)


def _save_seconds(trainer: TokenTrainer) -> float:
    start = time.perf_counter()
    trainer.save_step()
    trainer.finish_checkpoint()
    return time.perf_counter() - start
