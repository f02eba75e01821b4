"""A search for the values of some fields with which a recipe's validation loss is lowest."""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit import console
from peftkit.errors import ChangedError, InputError, RunError, Stopped, TargetError
from peftkit.experiments.search import OUTSIDE, Tuned, begin, judge, next_trial, opened, run_name, tell, tried, tuned
from peftkit.experiments.trials import Outcome, Watch, train_trial
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.study import Scalar, Searched, load_study, read_study, settings
from peftkit.runs.differences import recipe_differences
from peftkit.runs.folder import RunFolder, locked
from peftkit.storage import is_free, new_part, write_text

if TYPE_CHECKING:
    from optuna import Study as Search

__all__ = ["TuneOptions", "tune"]

_DATABASE, _STUDY, _RECIPE, _BEST = "study.db", "study.yaml", "recipe.yaml", "best.yaml"
_CHANGEABLE = ("n_trials", "time_limit_minutes")
"""What a study may say otherwise when it is gone on with."""


@dataclass(frozen=True)
class TuneOptions:
    """What is searched over, and how long."""

    study: Path
    method: str | None = None
    overrides: tuple[str, ...] = ()
    """`--set`, for all trials."""

    trials: int | None = None
    """Instead of the study's `n_trials`."""

    minutes: float | None = None
    """Instead of the study's `time_limit_minutes`."""

    def command(self, recipe: Path, output: Path) -> str:
        """The command that goes on with the search."""
        given: list[tuple[str, Any]] = [
            ("--study", self.study),
            ("--output", output),
            ("--method", self.method),
            ("--trials", self.trials),
            ("--time-limit", self.minutes),
            *(("--set", text) for text in self.overrides),
        ]
        options = [str(part) for name, value in given if value is not None for part in (name, value)]
        return shlex.join(["peftkit", "tune", str(recipe), *options])


def tune(recipe: Path, options: TuneOptions, output: Path) -> Tuned:
    """Try values for the fields of a study, each in a run of its own, and write the recipe of the best.

    Begun again after whatever end, the search goes on where it was, and makes the same trials.

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
    """Make the search's folder, whole or not at all.

    Raises:
        TargetError: nothing can be written there.
    """
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
    """See that a folder holds this search.

    Raises:
        TargetError: it is something else's.
        ChangedError: it is a search with another study or recipe.
    """
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
    """Say how to go on where a signal ends it."""
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
            trial, values = next_trial(self.search, self.searched)
            shown = ", ".join(f"{name} {_short(value)}" for name, value in values.items())
            console.info(f"{run_name(trial.number)}, {self.wanted - self._left() + 1} of {self.wanted}: {shown}")
            outcome = self._train(values, run_name(trial.number), judge(trial))
            tell(self.search, trial, outcome)
            self._write_best()
        if self._left():
            console.info(f"time is up with {self._left()} trials left; the same command goes on.")

    def result(self) -> Tuned:
        """What has been found.

        Raises:
            RunError: no trial was finished.
        """
        self._write_best()
        result = tuned(self.search, self.searched, str(self.output), str(self.output / _BEST), self._left())
        if result.best is None:
            why = next((each.error for each in result.trials if each.error), "time was up too early.")
            remedy = "Mend what the trials say, or give the same command again with more time or trials."
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
        """See that all trials have had the same data.

        Raises:
            ChangedError: its files have changed.
        """
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


def _short(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
