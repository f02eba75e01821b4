"""A search for the values of some fields with which a recipe's validation loss is lowest."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit import console
from peftkit.errors import ChangedError, InputError, RunError, Stopped, TargetError
from peftkit.experiments.search import OUTSIDE, Outcome, Tuned, ask, begin, judge, opened, run_name, tell, tried, tuned
from peftkit.recipe.hyperparameters import Training
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.study import Scalar, Searched, load_study, read_study, settings
from peftkit.runs.differences import recipe_differences
from peftkit.runs.folder import RunFolder, locked
from peftkit.storage import is_free, new_part, write_text
from peftkit.training.launch import run_apart, wait_for

if TYPE_CHECKING:
    from optuna import Study as Search

__all__ = ["TuneOptions", "tune"]

_DATABASE, _STUDY, _RECIPE, _BEST = "study.db", "study.yaml", "recipe.yaml", "best.yaml"
_CHANGEABLE = ("n_trials", "time_limit_minutes")
"""What a study may say otherwise when it is resumed."""


@dataclass(frozen=True)
class TuneOptions:
    """What is searched over, and how long."""

    study: Path
    method: str | None = None
    overrides: tuple[str, ...] = ()  # `--set`, for all trials.
    trials: int | None = None  # instead of the study's `n_trials`
    minutes: float | None = None  # instead of the study's `time_limit_minutes`

    def command(self, recipe: Path, output: Path) -> str:
        """The command that resumes the search."""
        given: dict[str, Any] = {"--study": self.study, "--output": output, "--method": self.method}
        given |= {"--trials": self.trials, "--time-limit": self.minutes}
        pairs = [*given.items(), *(("--set", text) for text in self.overrides)]
        options = [str(part) for name, value in pairs if value is not None for part in (name, value)]
        return shlex.join(["peftkit", "tune", str(recipe), *options])


def tune(recipe: Path, options: TuneOptions, output: Path) -> Tuned:
    """Try values for the fields of a study, each in a run of its own, and write the recipe of the best.

    Called again after whatever end, it resumes the search, and makes the same trials.

    Raises:
        InputError: recipe or study are wrong, or the folder is another search's; nothing has been trained then.
        RunError: no trial was finished.
        Stopped: a signal came; what was trained is saved.
    """
    searched = load_study(options.study, recipe, method=options.method, overrides=options.overrides)
    if is_free(output):
        _begin(output, searched, options.study)
    _check_same(output, searched)
    minutes = options.minutes or searched.study.time_limit_minutes
    deadline = time.monotonic() + minutes * 60 if minutes else math.inf
    with (
        locked(output),
        _telling(options.command(recipe, output)),
        opened(output / _DATABASE, searched.study) as search,
    ):
        work = _Work(search, searched, output, options.trials or searched.study.n_trials, deadline)
        work.go_on()
        return work.result()


def _begin(output: Path, searched: Searched, study: Path) -> None:
    """Make the search's folder, whole or not at all; TargetError if nothing can be written there."""
    try:
        part = new_part(output)
        try:
            shutil.copyfile(study, part / _STUDY)
            write_text(part / _RECIPE, searched.file.resolved_yaml())
            with opened(part / _DATABASE, searched.study) as search:
                if not begin(search, searched):
                    search.set_user_attr(OUTSIDE, None)
            part.replace(output)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        remedy = "Name another place with --output."
        raise TargetError(f"cannot be written: {error.strerror}.", where=str(output), remedy=remedy) from error


def _check_same(output: Path, searched: Searched) -> None:
    """See that a folder holds this search: TargetError for something else's, ChangedError for other values."""
    if not (output / _DATABASE).is_file():
        remedy = "Name another place with --output."
        raise TargetError("exists already, and holds no search.", where=str(output), remedy=remedy)
    try:
        study, _ = read_study(output / _STUDY)
        recipe = load_recipe(output / _RECIPE).recipe
    except InputError as error:
        what = f"cannot be read as a part of this search: {error.lines()[0]}"
        raise TargetError(what, where=str(output), remedy="Begin one in another --output.") from error
    before, now = study.model_dump(), searched.study.model_dump()
    named = [name for name in now if before[name] != now[name] and name not in _CHANGEABLE]
    changes = [f"the study's {name} is another one." for name in named]
    changed = recipe_differences(recipe.model_dump(mode="json"), searched.file.recipe.model_dump(mode="json"))
    changes += [f"the recipe's {difference}" for difference in changed]
    if changes:
        remedy = "Trials of other values cannot be compared: begin a search in another --output."
        raise ChangedError(changes, where=str(output), remedy=remedy)


@contextlib.contextmanager
def _telling(command: str) -> Iterator[None]:
    """Say how to resume where a signal ends it."""
    try:
        yield
    except Stopped as stopped:
        remedy = f"Go on with: {command}"
        raise Stopped(stopped.signal_number, stopped.what, remedy=remedy) from stopped


@dataclass(frozen=True)
class _Work:
    """A search that is at work in its folder."""

    search: Search
    searched: Searched
    output: Path
    wanted: int
    deadline: float

    def go_on(self) -> None:
        """Bring trials to their end until there are enough, or time is up."""
        attributes = self.search.user_attrs
        if OUTSIDE in attributes and attributes[OUTSIDE] is None and not self._is_late():
            console.info(f"{run_name(None)}: the recipe as it is, whose values the space does not hold")
            outcome = self._train({}, run_name(None), lambda *_: False)
            if outcome.state != "unfinished":
                self.search.set_user_attr(OUTSIDE, asdict(outcome))
        while self._left() and not self._is_late():
            trial, values = ask(self.search, self.searched)
            short = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
            shown = ", ".join(f"{name} {value}" for name, value in short.items())
            console.info(f"{run_name(trial.number)}, {self.wanted - self._left() + 1} of {self.wanted}: {shown}")
            outcome = self._train(values, run_name(trial.number), judge(trial))
            tell(self.search, trial, outcome)
            self._write_best()
        if self._left():
            console.info(f"time is up with {self._left()} trials left; the same command resumes.")

    def result(self) -> Tuned:
        """What has been found; RunError if no trial was finished."""
        self._write_best()
        result = tuned(self.search, self.searched, str(self.output), str(self.output / _BEST), self._left())
        if result.best is None:
            why = next((each.error for each in result.trials if each.error), "time was up too early.")
            remedy = "Fix what the trials say, or give the same command again with more time or trials."
            raise RunError(f"no trial was finished: {why}", where=str(self.output), remedy=remedy)
        return result

    def _train(self, values: Mapping[str, Scalar], name: str, is_hopeless: Callable[[int, float], bool]) -> Outcome:
        searched, folder = self.searched, RunFolder(self.output / name)
        training = searched.with_values(values).recipe.training
        changes = [*searched.overrides, *settings(values), "generation.samples=0"]
        arguments = [str(searched.path), "--no-report", *(part for text in changes for part in ("--set", text))]
        if searched.method:
            arguments += ["--method", searched.method]
        outcome = train_trial(arguments, Watch(folder, training, is_hopeless), folder, self._is_late)
        self._check_data(folder)
        shown = f", eval_loss {outcome.eval_loss:.4f}" if outcome.eval_loss is not None else ""
        console.info(f"{name}: {outcome.state}{shown}{f': {outcome.error}' if outcome.error else ''}")
        return outcome

    def _check_data(self, folder: RunFolder) -> None:
        """See that all trials have had the same data; ChangedError if not."""
        data = folder.read().data if folder.manifest.is_file() else None
        known = self.search.user_attrs.get("data")
        if data is not None and known is None:
            self.search.set_user_attr("data", data)
        elif data is not None and known != data:
            remedy = "Losses on other data cannot be compared: begin a search in another --output."
            what = f"{folder.path}: its data is not what the first trial had."
            raise ChangedError([what], where=str(self.output), remedy=remedy)

    def _write_best(self) -> None:
        """Write the recipe of the best trial so far, if one was finished."""
        best = tried(self.search, self.searched)[:1]
        if best and best[0].state == "finished":
            file = self.searched.with_values(best[0].values)
            recipe = file.recipe.model_copy(update={"name": f"{file.recipe.name}-tuned", "output": None})
            write_text(self.output / _BEST, replace(file, recipe=recipe).resolved_yaml())

    def _left(self) -> int:
        rows = tried(self.search, self.searched)
        return max(0, self.wanted - len([row for row in rows if row.state != "unfinished"]))

    def _is_late(self) -> bool:
        return time.monotonic() >= self.deadline


class Watch:
    """Looks at a run's evaluations, each once and in order, until one of them ends it.

    What comes of it depends on the losses alone and not on when they are seen: the newest evaluation of a run that has
    trained to its end never ends it.
    """

    def __init__(self, folder: RunFolder, training: Training, is_hopeless: Callable[[int, float], bool]) -> None:
        self._folder = folder
        self._training = training
        self._is_hopeless = is_hopeless
        self._seen = 0
        self.pruned: Outcome | None = None

    def look(self) -> bool:
        """Look at what is new; gives whether the run is to end."""
        for number, loss in list(self._evaluations())[self._seen :]:
            if self.pruned:
                break
            self._seen = number
            if self._is_hopeless(number, loss):
                self.pruned = Outcome("pruned", loss if math.isfinite(loss) else None)
        return self.pruned is not None

    def _evaluations(self) -> Iterator[tuple[int, float]]:
        """Number and loss of each evaluation between the first step and the last."""
        if not self._folder.metrics.is_file():
            return
        text = self._folder.metrics.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        evaluated = [line for line in lines if "eval_loss" in line and line["step"] > 0]
        for number, line in enumerate(evaluated, start=1):
            left: float = self._training.max_steps - line["step"]
            if self._training.max_steps <= 0:
                left = self._training.num_train_epochs - 1e-4 - line["epoch"]  # lines have four digits of it
            if left > 0:
                yield number, math.inf if line["eval_loss"] is None else line["eval_loss"]


def train_trial(arguments: Sequence[str], watch: Watch, folder: RunFolder, is_late: Callable[[], bool]) -> Outcome:
    """Train a trial, or resume it, to its end or until it is ended early; when time is up it is saved.

    Raises:
        InputError: it is not as `train` can take it.
        Stopped: a signal came; what was trained is saved.
    """
    wait_for(folder.path)
    status = 0
    if not watch.look():
        resuming = [] if folder.is_free else ["--resume"]
        command = ["train", *arguments, "--output", str(folder.path), *resuming]
        status = run_apart(command, lambda: watch.look() or is_late())
    if watch.look() and watch.pruned:
        return watch.pruned
    stopped = status in (128 + signal.SIGTERM, -signal.SIGTERM)
    if stopped and is_late():
        return Outcome("unfinished")
    if stopped or status in (128 + signal.SIGINT, 128 + signal.SIGHUP):
        number = signal.SIGTERM if stopped else status - 128
        raise Stopped(number, f"{folder.path} was stopped by {signal.Signals(number).name}.")
    if status == 2:
        remedy = "Fix it, and give the same command again."
        raise InputError("cannot be trained; its message stands above.", where=str(folder.path), remedy=remedy)
    return _outcome(folder, status)


def _outcome(folder: RunFolder, status: int) -> Outcome:
    manifest = folder.read() if folder.manifest.is_file() else None
    if status < 0:
        name = signal.Signals(-status).name
        memory = ", as the system does when its memory is short" if name == "SIGKILL" else ""
        return Outcome("failed", error=f"ended by {name}{memory}.")
    if status or manifest is None:
        known = manifest.error if manifest and manifest.status == "failed" else None
        return Outcome("failed", error=known or f"ended with status {status} before it trained.")
    loss = manifest.metrics.eval_loss
    if loss is None or not math.isfinite(loss):
        return Outcome("failed", error="its validation loss is no finite number.")
    return Outcome("finished", loss)
