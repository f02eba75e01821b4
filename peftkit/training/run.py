"""One run, from a recipe to a finished folder, or from where it stopped to there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from peftkit import console
from peftkit.errors import Batch, MemoryRunError, PeftkitError, TargetError
from peftkit.models.attach import count_parameters
from peftkit.models.live import LiveModel, free_memory
from peftkit.planning.memory import halved_batch
from peftkit.recipe.loader import RecipeFile
from peftkit.report.write import write_report
from peftkit.runs.checkpoints import Checkpoint, newest_sound
from peftkit.runs.differences import act_on_optimizer, check_differences
from peftkit.runs.folder import RunFolder
from peftkit.runs.inputs import Inputs
from peftkit.runs.manifest import RunManifest, RunMetrics
from peftkit.storage import sha256_of_json, write_text
from peftkit.training.ending import recorded
from peftkit.training.follow import Orders
from peftkit.training.job import Job, prepare_job
from peftkit.training.memory import peak_memory_bytes
from peftkit.training.output import ship
from peftkit.training.plan import estimate
from peftkit.training.processes import ALONE, Processes
from peftkit.training.resume import Past, check_finished, restart_point
from peftkit.training.shown import show_after, show_before
from peftkit.training.signals import StopRequest, stopping_at_signals
from peftkit.training.train import TrainingResult, Work, train

__all__ = ["RunOptions", "run"]


@dataclass(frozen=True)
class RunOptions:
    """How a run is started, which is no part of what it computes."""

    resume: bool = False
    """Go on with the run in the folder; begin one where there is none."""

    allowed_changes: tuple[str, ...] = ()
    """Fields that may differ from those that the run began with."""

    reports: bool = False
    """Write a page for people into the folder of a run that has come to its end."""

    auto_batch: bool = False
    """Halve the batch, and double the accumulation, until a step fits into memory."""


def run(
    file: RecipeFile, options: RunOptions = RunOptions(), processes: Processes = ALONE
) -> tuple[RunFolder, RunManifest]:
    """Train what a recipe says and leave a run folder whose output has been opened again and found right.

    Of several processes, this is the work of the main one; see `peftkit.training.together`.

    Raises:
        InputError: recipe, base or data are wrong, or have changed; nothing has been written then.
        RunError: training or its check failed; the folder's manifest says so.
        Stopped: a signal came; what was trained is saved.
    """
    folder = RunFolder(file.output)
    with stopping_at_signals() as stop:
        if options.resume and not folder.is_free:
            with folder.reopened() as manifest:
                return folder, _go_on(Past.read(folder, manifest), file, options, stop, processes)
        if options.resume:
            console.info(f"there is nothing to go on with in {folder.path}: a run begins.")
        folder.check_free()
        return folder, _begin(folder, file, options, stop, processes)


def _begin(
    folder: RunFolder, file: RecipeFile, options: RunOptions, stop: StopRequest, processes: Processes
) -> RunManifest:
    job = prepare_job(file, processes)
    inputs = job.inputs()
    _look_ahead(folder, job)
    with _beyond_auto_batch(options):
        live = LiveModel(job.load())
    manifest = job.manifest()
    with folder.created(job.file.resolved_yaml(), manifest):
        return _carry_out(_Attempt(job, folder, manifest, inputs, stop, options), live)


def _go_on(past: Past, file: RecipeFile, options: RunOptions, stop: StopRequest, processes: Processes) -> RunManifest:
    """Go on with a run, once it is known to be the same one."""
    file = past.as_batched(file)
    if past.manifest.status == "finished":
        check_finished(past, file.recipe)
        console.info(f"{past.folder.path} is finished: nothing is left to do.")
        return past.manifest
    # what differs in the recipe is told before anything is loaded
    check_differences(past.changes(file.recipe), options.allowed_changes, str(past.folder.path))
    job = prepare_job(file, processes)
    manifest = job.manifest()
    changes = past.check(job, manifest, options.allowed_changes)
    checkpoint, passed_over = restart_point(past)
    manifest.run_id, manifest.auto_batch = past.manifest.run_id, past.manifest.auto_batch
    manifest.warnings = list(dict.fromkeys([*past.manifest.warnings, *manifest.warnings]))
    step = checkpoint.step if checkpoint else 0
    now = {"step": step, "passed_over": passed_over, "changes": [asdict(change) for change in changes]}
    manifest.resumed = [*past.manifest.resumed, now]
    inputs = job.inputs()
    with _beyond_auto_batch(options):
        live = LiveModel(job.load())
    for place in (past.folder.adapter, past.folder.model):
        past.folder.discard_output(place)  # it was not proven, or the run would be finished
    write_text(past.folder.recipe, job.file.resolved_yaml())
    past.folder.write(manifest)
    attempt = _Attempt(job, past.folder, manifest, inputs, stop, options, checkpoint, adopt=act_on_optimizer(changes))
    return _carry_out(attempt, live)


@dataclass(frozen=True)
class _Attempt:
    """A run that holds its folder."""

    job: Job
    folder: RunFolder
    manifest: RunManifest
    inputs: Inputs
    stop: StopRequest
    options: RunOptions
    checkpoint: Checkpoint | None = None
    adopt: bool = False

    def work(self) -> Work:
        """What training needs of it."""
        manifest = self.manifest
        work = self.job.work(self.folder, manifest.run_id, manifest.warnings, self.stop)
        return replace(work, check_inputs=self.inputs.check, checkpoint=self.checkpoint, adopt=self.adopt)

    def orders(self) -> Orders:
        """What the other processes must know to train along."""
        training = self.job.recipe.training
        return Orders(
            run_id=self.manifest.run_id,
            folder=str(self.folder.path.absolute()),
            step=self.checkpoint.step if self.checkpoint else None,
            adopt=self.adopt,
            batch=(training.per_device_train_batch_size, training.gradient_accumulation_steps),
        )

    def with_smaller(self, batch: Batch, rows: int | None) -> _Attempt | None:
        """The same run with half of a batch, or with `rows`, from its newest checkpoint; None where it is one row."""
        if batch == "evaluation":
            return self._with_smaller_evaluation()
        training = self.job.recipe.training
        before = [training.per_device_train_batch_size, training.gradient_accumulation_steps]
        smaller = halved_batch(before[0], before[1])
        while smaller is not None and rows is not None and smaller[0] > max(1, rows):
            smaller = halved_batch(*smaller)
        if smaller is None:
            return None
        recorded = {"recipe": before, **(self.manifest.auto_batch or {})}
        return self._again(self.job.with_batch(*smaller), {**recorded, "used": list(smaller)})

    def _with_smaller_evaluation(self) -> _Attempt | None:
        training = self.job.recipe.training
        before, rows = training.per_device_eval_batch_size, training.per_device_eval_batch_size // 2
        if not rows:
            return None
        batch = [training.per_device_train_batch_size, training.gradient_accumulation_steps]
        recorded = self.manifest.auto_batch or {"recipe": batch, "used": batch}
        found = [recorded.get("evaluation", [before])[0], rows]
        return self._again(self.job.with_evaluation_batch(rows), {**recorded, "evaluation": found})

    def _again(self, job: Job, recorded: dict[str, list[int]]) -> _Attempt:
        """The same run with a job that needs less, which is written down."""
        self.manifest.auto_batch = recorded
        self.manifest.recipe_sha256 = sha256_of_json(job.recipe.model_dump(mode="json"))
        write_text(self.folder.recipe, job.file.resolved_yaml())
        self.folder.write(self.manifest)
        checkpoint, _ = newest_sound(self.folder.checkpoints, self.manifest.run_id)
        return replace(self, job=job, checkpoint=checkpoint)


def _carry_out(attempt: _Attempt, live: LiveModel) -> RunManifest:
    """Train, export and prove, and write down how it ended."""
    folder, manifest = attempt.folder, attempt.manifest
    processes = attempt.job.processes
    beyond = _beyond_auto_batch(attempt.options)
    with recorded(folder, manifest), beyond, processes.ending_as_one(), attempt.job.file.locating():
        show_before(live.model, attempt.job, folder, resumed=attempt.checkpoint is not None)
        trainable, total = count_parameters(live.model)
        attempt.orders().give(processes)
        result, attempt = _trained(attempt, live)
        free_memory()  # of the optimizer
        manifest.metrics = RunMetrics(trainable_parameters=trainable, total_parameters=total, **asdict(result))
        attempt.inputs.check()
        show_after(live.model, attempt.job, folder)
        ship(live, attempt.job, folder, manifest)
        peak = max(result.peak_memory_bytes, peak_memory_bytes(attempt.job.hardware))
        manifest.metrics = replace(manifest.metrics, peak_memory_bytes=peak)
        manifest.status = "finished"
    if attempt.options.reports:
        _report(folder)
    return manifest


def _report(folder: RunFolder) -> None:
    """Write the page; the run is finished whether or not that succeeds."""
    try:
        write_report([folder.path])
    except (PeftkitError, OSError) as error:
        console.warning(f"the report could not be written: {error}")


def _trained(attempt: _Attempt, live: LiveModel) -> tuple[TrainingResult, _Attempt]:
    """Train, with smaller and smaller batches where they are wanted and needed."""
    while True:
        try:
            return train(live.model, attempt.work()), attempt
        except MemoryRunError as error:
            batch = error.batch if attempt.options.auto_batch else None
            smaller = attempt.with_smaller(batch, error.rows) if batch else None
            if smaller is None:
                raise
            attempt, shortage, moved = smaller, error.what, error.moved
        _tell_smaller(attempt, shortage)
        free_memory()  # of the optimizer
        if moved and attempt.checkpoint is None:
            live.release()
            live.take(attempt.job.load())


@contextmanager
def _beyond_auto_batch(options: RunOptions) -> Iterator[None]:
    """Say why --auto-batch cannot help, where memory is short within the block and it was asked for."""
    try:
        yield
    except MemoryRunError as error:
        if options.auto_batch:
            why = f"the {error.batch} batch is one row already" if error.batch else "no batch has a part in this"
            error.remedy = f"{error.remedy or ''} --auto-batch cannot help: {why}.".strip()
        raise


def _look_ahead(folder: RunFolder, job: Job) -> None:
    """Say what the run will take, and see that the disk has room for what it will write.

    Raises:
        TargetError: it has not.
    """
    ahead = estimate(job)
    console.info(ahead.summary(job.recipe.training))
    if ahead.peak_memory_bytes > ahead.limit_bytes:
        console.warning("that may be more memory than there is; `peftkit plan` measures it, and says what would fit.")
    need = ahead.disk
    if need.total > ahead.free_bytes:
        kept = f"{need.checkpoints} checkpoints of {console.size(need.checkpoint_bytes)} at a time, and "
        raise TargetError(
            f"the run needs about {console.size(need.total)} ({kept if need.checkpoints else ''}"
            f"{console.size(need.output_bytes)} in the end), but the disk has {console.size(ahead.free_bytes)} free.",
            where=str(folder.path),
            remedy="Free some, name another --output, lower training.save_total_limit, or use method: lora.",
        )


def _tell_smaller(attempt: _Attempt, shortage: str) -> None:
    training = attempt.job.recipe.training
    rows, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    where = f"from step {attempt.checkpoint.step}" if attempt.checkpoint else "from the first step"
    batch = "one row" if rows == 1 else f"{rows} rows"
    evaluated = training.per_device_eval_batch_size
    line = f"{shortage} Trying again {where} with {batch} at a time, accumulated {accumulation} times"
    attempt.work().warn(f"{line}, and {evaluated} at a time in evaluations.")
