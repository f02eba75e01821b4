"""One run, from a recipe to a verified output: a story to read from top to bottom, and how a run is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from peftkit import console
from peftkit.errors import ChangedError, InputError, MemoryRunError, TargetError
from peftkit.models.device import LiveModel, free_memory
from peftkit.recipe.loader import RecipeFile, load_recipe
from peftkit.recipe.schema import Recipe
from peftkit.runs.differences import (
    Difference,
    act_on_optimizer,
    check_differences,
    input_differences,
    recipe_differences,
)
from peftkit.runs.folder import Checkpoint, RunFolder, checkpoint_place, newest_sound, set_aside
from peftkit.runs.manifest import RunManifest, RunMetrics
from peftkit.storage import file_fault, sha256_of_json, write_text
from peftkit.training.memory import as_found, beyond_auto_batch, describe_batches, peak_memory_bytes, smaller_batch
from peftkit.training.output import export_run, verify_output, write_after, write_before
from peftkit.training.plan import estimate
from peftkit.training.prepare import Run, load_isolated, prepare_run
from peftkit.training.processes import ALONE, NEVER, Processes, StopRequest
from peftkit.training.train import train

__all__ = ["RunOptions", "follow", "read_past", "run"]

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
    file: RecipeFile, options: RunOptions = RunOptions(), processes: Processes = ALONE, stop: StopRequest = NEVER
) -> tuple[RunFolder, RunManifest]:
    """Train by a recipe, and leave a run folder whose output has been saved and verified.

    Of several processes, this is the work of the main one; see `follow`.

    Raises:
        InputError: recipe, base or data are wrong, or have changed; nothing has been written then.
        RunError: training or the verification failed; the folder's manifest says so.
        Stopped: `stop` was requested; what was trained is saved.
    """
    if options.auto_batch and processes.are_many:
        remedy = "Find the batch in one process first; it is in its manifest."
        raise InputError("works in one process alone.", where="--auto-batch", remedy=remedy)
    with _reopened(RunFolder(file.output), resume=options.resume) as past:
        file = past.found(file) if past else file
        if past and past.is_finished(file.recipe, options.allowed_changes):
            console.info(f"{past.folder.path} is finished: nothing is left to do.")
            return past.folder, past.manifest

        def prepared(file: RecipeFile) -> Run:
            run = prepare_run(file, processes)  # hardware, base, data, and the audit of the data
            run.stop = stop
            run.inputs.check()
            if past:
                past.continue_in(run, options.allowed_changes)
            else:
                _plan(run)
            return run

        with beyond_auto_batch(asked=options.auto_batch):
            run, live = load_isolated(prepared(file), prepared)
        with _held(run, past), beyond_auto_batch(asked=options.auto_batch):
            _carry_out(run, live, options)
        return run.folder, run.manifest


def _carry_out(run: Run, live: LiveModel, options: RunOptions) -> None:
    """Train, export and verify, and record it in the manifest."""
    manifest = run.manifest
    with run.folder.recording(manifest), run.processes.ending_as_one(), run.file.locating():
        write_before(run, live.model)
        run.processes.publish(_ORDERS, _orders(run))
        manifest.metrics = _train_what_fits(run, live, options)
        free_memory()  # of the optimizer
        manifest.data = run.data_record()  # of a stream, all of it is known now
        run.inputs.check()
        sample, expected = export_run(run, live.model)
        write_after(run, live.model)
        device = str(live.model.device)
        live.release()  # so that the verification needs no more memory than training did
        manifest.outputs = verify_output(run, device, expected, sample)
        peak = max(manifest.metrics.peak_memory_bytes or 0, peak_memory_bytes(run.hardware))
        manifest.metrics = replace(manifest.metrics, peak_memory_bytes=peak)
        manifest.status = "finished"


def follow(file: RecipeFile, processes: Processes, stop: StopRequest = NEVER) -> None:
    """The work of a process that is not the main one: prepare and train the same, and write nothing.

    Raises:
        InputError, RunError, Stopped: as for the main process.
    """
    run, live = load_isolated(prepare_run(file, processes), partial(prepare_run, processes=processes))
    run.stop = stop
    orders = processes.wait_for(_ORDERS)
    run.run_id, run.folder, run.adopt = orders["run_id"], RunFolder(Path(orders["folder"])), orders["adopt"]
    run.file = run.file.with_training(orders["training"])
    if orders["step"] is not None:
        run.checkpoint = Checkpoint(orders["step"], checkpoint_place(run.folder.checkpoints, orders["step"]))
    with file.locating():
        train(live.model, run)


def _orders(run: Run) -> dict[str, Any]:
    """What the main process has decided and the others must know."""
    names = {"per_device_train_batch_size", "gradient_accumulation_steps"}
    return {
        "run_id": run.run_id,
        "folder": str(run.folder.path.absolute()),
        "step": run.checkpoint.step if run.checkpoint else None,
        "adopt": run.adopt,
        "training": run.recipe.training.model_dump(include=names),
    }


@contextmanager
def _held(run: Run, past: Past | None) -> Iterator[None]:
    """Hold the run's folder, which from here on has its recipe and its manifest."""
    if past:
        past.write_over(run)
        yield
    else:
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


def _plan(run: Run) -> None:
    """Print what the run will use, and check that the disk has room for it.

    Raises:
        TargetError: it has not.
    """
    plan = estimate(run)
    console.info(plan.summary(run.recipe.training.effective_batch))
    if missing := plan.what_is_missing():
        console.info(f"{missing}; `peftkit plan` measures them.")
    if plan.peak_memory_bytes > plan.limit_bytes:
        console.warning("that may be more memory than there is; `peftkit plan` measures it, and says what would fit.")
    need, free = plan.disk, console.size(plan.free_bytes)
    if need.total > plan.free_bytes:
        kept = f"{need.checkpoints} checkpoints of {console.size(need.checkpoint_bytes)} at a time, and "
        parts = f"{kept if need.checkpoints else ''}{console.size(need.output_bytes)} in the end"
        what = f"the run needs about {console.size(need.total)} ({parts}), but the disk has {free} free."
        remedy = "Free some, name another --output, lower training.save_total_limit, or use method: lora."
        raise TargetError(what, where=str(run.folder.path), remedy=remedy)


@dataclass(frozen=True)
class Past:
    """A run as it was recorded when it last ended."""

    folder: RunFolder
    manifest: RunManifest
    recipe: Recipe

    def found(self, file: RecipeFile) -> RecipeFile:
        """A recipe with what this run has found out for itself: batches that fit, time of templates, and packing."""
        file = as_found(file, self.manifest.auto_batch)
        unset = [name for name in ("time", "packing") if getattr(file.recipe.data, name) is None]
        return file.with_data({name: getattr(self.recipe.data, name) for name in unset})

    def is_finished(self, recipe: Recipe, allowed: Sequence[str]) -> bool:
        """Whether nothing is left to do, once it is known to be the run that is asked for.

        Raises:
            ChangedError: it is another one, by its recipe.
            TargetError: it is finished, and something of it is damaged.
        """
        changes, where = self._changes(recipe), str(self.folder.path)
        if self.manifest.status != "finished":
            check_differences(changes, allowed, where)  # before anything is loaded
            return False
        if changes:
            remedy = "It is finished, so it stays as it is: begin a run in another --output."
            raise ChangedError([str(change) for change in changes], where=where, remedy=remedy)
        for name, sha256 in self.manifest.outputs.items():
            if fault := file_fault(self.folder.path, name, sha256):
                remedy = "See `peftkit verify`; train again with another --output."
                raise TargetError(f"the run is finished, but {fault}.", where=where, remedy=remedy)
        return True

    def continue_in(self, run: Run, allowed: Sequence[str]) -> None:
        """Make a prepared run this one: with its id and history, from its newest checkpoint that verifies.

        Raises:
            ChangedError: something has changed that is not allowed to.
        """
        run.run_id = self.manifest.run_id
        manifest = run.manifest  # made now, with that id
        changes = [*self._changes(run.recipe), *input_differences(self.manifest, manifest)]
        check_differences(changes, allowed, str(self.folder.path))
        for change in changes:
            console.warning(f"resuming with a change: {change}")
        passed_over = self._find_checkpoint(run)
        run.adopt = act_on_optimizer(changes)
        manifest.auto_batch = self.manifest.auto_batch
        manifest.warnings = list(dict.fromkeys([*self.manifest.warnings, *manifest.warnings]))
        step = run.checkpoint.step if run.checkpoint else 0
        now = {"step": step, "passed_over": passed_over, "changes": [asdict(change) for change in changes]}
        manifest.resumed = [*self.manifest.resumed, now]

    def write_over(self, run: Run) -> None:
        """Put the recipe and the manifest of the resumed run into the folder, and remove an unverified output."""
        for place in (self.folder.adapter, self.folder.model):
            self.folder.discard_output(place)  # it was not verified, or the run would be finished
        write_text(self.folder.recipe, run.file.resolved_yaml())
        self.folder.write(run.manifest)

    def _changes(self, recipe: Recipe) -> list[Difference]:
        return recipe_differences(self.recipe.model_dump(mode="json"), recipe.model_dump(mode="json"))

    def _find_checkpoint(self, run: Run) -> list[str]:
        """Set the newest checkpoint that verifies; returns those passed over, which are reported, kept, and renamed."""
        run.checkpoint, passed_over = newest_sound(self.folder.checkpoints, run.run_id)
        notes = []
        for damaged, faults in passed_over:
            place = set_aside(damaged)
            notes.append(f"{damaged.path.name}: {'; '.join(faults)}")
            console.warning(f"{damaged.path} is passed over: {'; '.join(faults)}. It is {place.name} now.")
        if run.checkpoint is None:
            console.info(f"{self.folder.path} has no checkpoint that verifies, so the run begins again.")
        else:
            console.info(f"resuming from {run.checkpoint.path}.")
        return notes


@contextmanager
def _reopened(folder: RunFolder, *, resume: bool) -> Iterator[Past | None]:
    """Hold the folder of a run that is to be resumed; None for a new run, whose place is free.

    Raises:
        TargetError: the place is not free, or there is no run in it whose recipe can be read.
    """
    if resume and not folder.is_free:
        with folder.reopened() as manifest:
            yield read_past(folder, manifest)
        return
    if resume:
        console.info(f"there is nothing to resume in {folder.path}: starting a run.")
    folder.check_free()
    yield None


def read_past(folder: RunFolder, manifest: RunManifest) -> Past:
    """The run in a folder.

    Raises:
        TargetError: its recipe cannot be read any more.
    """
    try:
        return Past(folder, manifest, load_recipe(folder.recipe).recipe)
    except InputError as error:
        what = f"cannot be read as the recipe of this run: {error.lines()[0]}"
        remedy = "Use the peftkit that wrote it, or begin a run in another --output."
        raise TargetError(what, where=str(folder.recipe), remedy=remedy) from error
