"""One run, from a recipe to a verified output: a story to read from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftkit import console
from peftkit.errors import InputError, MemoryRunError, TargetError
from peftkit.models.device import LiveModel, free_memory
from peftkit.recipe.loader import RecipeFile
from peftkit.runs.checkpoints import Checkpoint, checkpoint_place, newest_sound
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest, RunMetrics
from peftkit.storage import sha256_of_json, write_text
from peftkit.training.auto_batch import as_found, beyond_auto_batch, describe_batches, smaller_batch
from peftkit.training.memory import peak_memory_bytes
from peftkit.training.output import (
    export_run,
    pick_sample,
    verify_output,
    write_audit,
    write_samples_after,
    write_samples_before,
)
from peftkit.training.plan import estimate
from peftkit.training.prepare import Run, prepare_run
from peftkit.training.processes import ALONE, Processes
from peftkit.training.resume import Past, reopened
from peftkit.training.signals import NEVER, StopRequest
from peftkit.training.train import train

__all__ = ["RunOptions", "follow", "run"]

_ORDERS = "orders"


@dataclass(frozen=True)
class RunOptions:
    """How a run is started, which has no effect on its result."""

    resume: bool = False
    """Resume the run in the folder; start one where there is none."""

    allowed_changes: Sequence[str] = ()
    """Fields that may differ from those that the run started with."""

    auto_batch: bool = False
    """Halve the batch, and double the accumulation, until a step fits into memory."""


def run(
    file: RecipeFile,
    options: RunOptions = RunOptions(),
    processes: Processes = ALONE,
    stop: StopRequest = NEVER,
) -> tuple[RunFolder, RunManifest]:
    """Train what a recipe says, and leave a run folder whose output has been saved and verified.

    Of several processes, this is the work of the main one; see `follow`.

    Args:
        file: the recipe.
        options: how the run is started.
        processes: that train together.
        stop: asked between steps.

    Raises:
        InputError: recipe, base or data are wrong, or have changed; nothing has been written then.
        RunError: training or the verification failed; the folder's manifest says so.
        Stopped: `stop` was requested; what was trained is saved.
    """
    _check_processes(options, processes)
    with reopened(RunFolder(file.output), resume=options.resume) as past:
        file = as_found(file, past.manifest.auto_batch) if past else file
        if past and past.is_finished(file.recipe, options.allowed_changes):
            console.info(f"{past.folder.path} is finished: nothing is left to do.")
            return past.folder, past.manifest
        run = prepare_run(file, processes)  # hardware, base, data, and the audit of the data
        run.stop = stop
        run.inputs.check()
        if past:
            past.continue_in(run, options.allowed_changes)
        else:
            _plan(run)
        with beyond_auto_batch(asked=options.auto_batch):
            live = LiveModel(run.load())
        with _held(run, past), beyond_auto_batch(asked=options.auto_batch):
            _carry_out(run, live, options)
        return run.folder, run.manifest


def _carry_out(run: Run, live: LiveModel, options: RunOptions) -> None:
    """Train, export and verify, and record it in the manifest."""
    manifest = run.manifest
    with run.folder.recording(manifest), run.processes.ending_as_one(), run.file.locating():
        write_audit(run)
        write_samples_before(run, live.model)
        run.processes.publish(_ORDERS, _orders(run))
        manifest.metrics = _train_what_fits(run, live, options)
        free_memory()  # of the optimizer
        manifest.data = run.data_record()  # of a stream, all of it is known now
        run.inputs.check()
        write_samples_after(run, live.model)
        sample = pick_sample(run.data)
        expected = export_run(run, live.model, sample)
        device = str(live.model.device)
        live.release()  # so that the verification needs no more memory than training did
        manifest.outputs = verify_output(run, device, expected, sample)
        peak = max(manifest.metrics.peak_memory_bytes or 0, peak_memory_bytes(run.hardware))
        manifest.metrics = replace(manifest.metrics, peak_memory_bytes=peak)
        manifest.status = "finished"


def follow(file: RecipeFile, processes: Processes, stop: StopRequest = NEVER) -> None:
    """Take the part of a process that is not the main one: prepare and train the same, and write nothing.

    Raises:
        InputError, RunError, Stopped: as for the main process.
    """
    run = prepare_run(file, processes)
    run.stop = stop
    model = run.load()
    orders = processes.wait_for(_ORDERS)
    run.run_id, run.folder, run.adopt = orders["run_id"], RunFolder(Path(orders["folder"])), orders["adopt"]
    run.file = run.file.with_training(orders["training"])
    if orders["step"] is not None:
        run.checkpoint = Checkpoint(orders["step"], checkpoint_place(run.folder.checkpoints, orders["step"]))
    with file.locating():
        train(model, run)


def _orders(run: Run) -> dict[str, Any]:
    """What the main process has decided and the others must know."""
    training, names = run.recipe.training, ("per_device_train_batch_size", "gradient_accumulation_steps")
    return {
        "run_id": run.run_id,
        "folder": str(run.folder.path.absolute()),
        "step": run.checkpoint.step if run.checkpoint else None,
        "adopt": run.adopt,
        "training": {name: getattr(training, name) for name in names},
    }


@contextmanager
def _held(run: Run, past: Past | None) -> Iterator[None]:
    """Hold the run's folder, which from here on has its recipe and its manifest."""
    if past:
        past.write_over(run)
        yield
        return
    with run.folder.created(run.file.resolved_yaml(), run.manifest):
        yield


def _train_what_fits(run: Run, live: LiveModel, options: RunOptions) -> RunMetrics:
    """Train, with smaller and smaller batches where that is wanted and needed."""
    while True:
        try:
            return train(live.model, run)
        except MemoryRunError as error:
            found = run.manifest.auto_batch
            smaller = smaller_batch(run.recipe.training, error, found) if options.auto_batch else None
            if smaller is None:
                raise
            shortage, moved = error.what, error.moved
        changes, run.manifest.auto_batch = smaller
        run.file = run.file.with_training(changes)
        run.manifest.recipe_sha256 = sha256_of_json(run.recipe.model_dump(mode="json"))
        write_text(run.folder.recipe, run.file.resolved_yaml())
        run.folder.write(run.manifest)
        run.checkpoint, _ = newest_sound(run.folder.checkpoints, run.run_id)
        where = f"from step {run.checkpoint.step}" if run.checkpoint else "from the first step"
        run.warn(f"{shortage} Trying again {where} with {describe_batches(run.recipe.training)}")
        free_memory()  # of the optimizer
        if moved and run.checkpoint is None:
            live.release()
            live.take(run.load())


def _check_processes(options: RunOptions, processes: Processes) -> None:
    if options.auto_batch and processes.are_many:
        remedy = "Find the batch in one process first; its manifest tells it."
        raise InputError("works in one process alone.", where="--auto-batch", remedy=remedy)


def _plan(run: Run) -> None:
    """Print what the run will use, and see that the disk has room for what it will write.

    Raises:
        TargetError: it has not.
    """
    plan = estimate(run)
    console.info(plan.summary(run.recipe.training))
    if plan.peak_memory_bytes > plan.limit_bytes:
        console.warning("that may be more memory than there is; `peftkit plan` measures it, and says what would fit.")
    need = plan.disk
    if need.total > plan.free_bytes:
        kept = f"{need.checkpoints} checkpoints of {console.size(need.checkpoint_bytes)} at a time, and "
        raise TargetError(
            f"the run needs about {console.size(need.total)} ({kept if need.checkpoints else ''}"
            f"{console.size(need.output_bytes)} in the end), but the disk has {console.size(plan.free_bytes)} free.",
            where=str(run.folder.path),
            remedy="Free some, name another --output, lower training.save_total_limit, or use method: lora.",
        )
