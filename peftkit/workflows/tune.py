"""A search for the values of some fields with which a recipe's validation loss is lowest."""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit import console
from peftkit.errors import ChangedError, RunError, Stopped, TargetError
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.study import Scalar, Study
from peftkit.recipe.study_file import Searched, load_study, read_study, settings
from peftkit.runs.differences import recipe_differences
from peftkit.runs.folder import RunFolder
from peftkit.runs.lock import locked
from peftkit.storage import is_free, new_part, write_text
from peftkit.workflows.search import ENDED, begin, importances, next_trial, opened
from peftkit.workflows.trials import Outcome, State, Watch, train_trial

if TYPE_CHECKING:
    from optuna import Study as Search
    from optuna.trial import FrozenTrial, Trial

__all__ = ["Tried", "TuneOptions", "Tuned", "tune"]

_DATABASE, _STUDY, _RECIPE, _BEST, _TRIALS = "study.db", "study.yaml", "recipe.yaml", "best.yaml", "trials"
_OWN = "recipe"
"""The run of the recipe's own values, where the space does not hold them."""

_STATES: dict[str, State] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}


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


@dataclass(frozen=True)
class Tried:
    """One trial."""

    number: int | None
    """None for the recipe's own values, where the space does not hold them."""

    run: str
    """Its run folder, within the search's."""

    state: State
    values: dict[str, Scalar]
    eval_loss: float | None
    """Nats for each taught token of the validation data: after training, or when the trial was ended early."""

    perplexity: float | None
    error: str | None


@dataclass(frozen=True)
class Tuned:
    """What a search has found."""

    output: str
    trials: list[Tried]
    """Those that were finished, by their loss; then the others."""

    trials_left: int
    best: Tried
    best_recipe: str
    """The recipe file of the best trial."""

    recipe: Tried | None
    """The trial with the recipe's own values, if it was finished."""

    gain: float | None
    """By how much the best validation loss is below the recipe's."""

    importances: dict[str, float] = field(default_factory=dict)
    """Each field's share of what tells good trials from others; empty where there are too few."""


def tune(recipe: Path, options: TuneOptions, output: Path) -> Tuned:
    """Try values for the fields of a study, each in a run of its own, and write the recipe of the best.

    Begun again after whatever end, the search goes on where it was, and makes the same trials.

    Raises:
        InputError: recipe or study are wrong, or the folder is another search's; nothing has been trained then.
        RunError: no trial was finished.
        Stopped: a signal came; what was trained is saved.
    """
    searched = load_study(options.study, recipe, method=options.method, overrides=options.overrides)
    minutes = options.minutes or searched.study.time_limit_minutes
    wanted = options.trials or searched.study.n_trials
    _prepare(output, searched, options.study)
    with locked(output), _telling(options.command(recipe, output)):
        _check_same(output, searched, options.study)
        with opened(output / _DATABASE, searched.study) as search:
            work = _Work(search, searched, output, wanted, time.monotonic() + minutes * 60 if minutes else math.inf)
            work.go_on()
            return work.result()


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
        if _OWN in self.search.user_attrs and self.search.user_attrs[_OWN] is None and not self._is_late():
            console.info("the recipe as it is; the space does not hold its values")
            outcome = self._train({}, self.output / _TRIALS / _OWN, lambda number, loss: False)
            if outcome.state != "unfinished":
                self.search.set_user_attr(_OWN, asdict(outcome))
        while self.left() and not self._is_late():
            trial, values = next_trial(self.search, self.searched)
            console.info(f"trial {trial.number} of 0 to {self._last_number()}: {', '.join(settings(values))}")
            outcome = self._train(values, self._folder(trial.number), _judge(trial))
            _tell(self.search, trial, outcome)
            self._write_best()
        if self.left():
            console.info(f"time is up; the same command goes on with the {self.left()} trials that are left.")

    def left(self) -> int:
        """Trials that have not come to their end."""
        return max(0, self.wanted - len([tried for tried in self._tried() if tried.state != "unfinished"]))

    def result(self) -> Tuned:
        """What has been found so far.

        Raises:
            RunError: no trial was finished.
        """
        best = self._write_best()
        tried = self._tried()
        if best is None:
            why = next((each.error for each in tried if each.error), "time was up too early.")
            remedy = "Give the same command again, with more time or trials, or mend what the trials say."
            raise RunError(f"no trial was finished: {why}", where=str(self.output), remedy=remedy)
        own = next((each for each in tried if self._is_the_recipe(each) and each.state == "finished"), None)
        gain = own.eval_loss - best.eval_loss if own and own.eval_loss is not None and best.eval_loss is not None else None
        place, mattered = str(self.output / _BEST), importances(self.search)
        return Tuned(str(self.output), sorted(tried, key=_rank), self.left(), best, place, own, gain, mattered)

    def _train(self, values: Mapping[str, Scalar], place: Path, judge: Callable[[int, float], bool]) -> Outcome:
        searched, folder = self.searched, RunFolder(place)
        training = searched.with_values(values).recipe.training
        given = [*searched.overrides, *settings(values), "generation.samples=0"]
        arguments = [str(searched.path), "--no-report", *(part for text in given for part in ("--set", text))]
        if searched.method:
            arguments += ["--method", searched.method]
        outcome = train_trial(arguments, Watch(folder, training, judge), folder, self._is_late)
        self._check_data(folder)
        shown = f"eval_loss {outcome.eval_loss:.4f}, " if outcome.eval_loss is not None else ""
        console.info(f"{place.name}: {shown}{outcome.state}{f': {outcome.error}' if outcome.error else ''}")
        return outcome

    def _check_data(self, folder: RunFolder) -> None:
        """See that all trials had the same data.

        Raises:
            ChangedError: its files have changed.
        """
        data = folder.read().data if folder.manifest.is_file() else None
        known = self.search.user_attrs.get("data")
        if data is not None and known is None:
            self.search.set_user_attr("data", data)
        elif data is not None and known != data:
            remedy = "Losses on other data cannot be compared: begin a search in another --output."
            raise ChangedError([f"{folder.path}: the data is not that of the trials before it."], where=str(self.output), remedy=remedy)

    def _write_best(self) -> Tried | None:
        """Write the recipe of the best trial so far, if one was finished."""
        finished = [tried for tried in self._tried() if tried.state == "finished"]
        best = min(finished, key=_rank, default=None)
        if best is not None:
            file = self.searched.with_values(best.values)
            recipe = file.recipe.model_copy(update={"name": f"{file.recipe.name}-tuned", "output": None})
            write_text(self.output / _BEST, replace(file, recipe=recipe).resolved_yaml())
        return best

    def _tried(self) -> list[Tried]:
        own = self.search.user_attrs.get(_OWN)
        rows = [_row(None, f"{_TRIALS}/{_OWN}", {}, Outcome(**own))] if own else []
        return rows + [_frozen(trial) for trial in self.search.get_trials(deepcopy=False) if trial.state.name != "WAITING"]

    def _is_the_recipe(self, tried: Tried) -> bool:
        return tried.number is None or (tried.number == 0 and _OWN not in self.search.user_attrs)

    def _folder(self, number: int) -> Path:
        return self.output / _run_name(number)

    def _last_number(self) -> int:
        return self.wanted - 1 - (_OWN in self.search.user_attrs)

    def _is_late(self) -> bool:
        return time.monotonic() >= self.deadline
