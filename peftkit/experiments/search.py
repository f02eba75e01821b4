"""The search of a study in Optuna: which values to try next, what has been tried, and what was found."""

from __future__ import annotations

import contextlib
import hashlib
import math
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState

from peftkit.recipe.study import Scalar, Searched, Study, holds

if TYPE_CHECKING:
    from optuna import Study as Search

__all__ = [
    "OUTSIDE", "Outcome", "State", "Tried", "Tuned", "ask", "begin", "importances", "judge", "opened", "run_name",
    "tell", "tried", "tuned",
]  # fmt: skip

State = Literal["finished", "pruned", "failed", "unfinished"]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    state: State
    eval_loss: float | None = None  # of the validation data: after training, or when the trial was ended early
    error: str | None = None


_NAME = "tune"
_RANDOM_TRIALS = 5
"""Trials that are drawn at random, before the sampler has seen enough to learn from."""

_FINISHED_BEFORE_PRUNING = 3
_FIRST_PRUNED_EVALUATION = 2
"""After the first evaluation, a high learning rate is still ahead of those that come further."""

_FINISHED_FOR_IMPORTANCES = 10

OUTSIDE = "recipe"
"""The run of the recipe's own values where the space does not hold them, and where the search keeps how it ended."""

_STATES: dict[str, State] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "unfinished"}
_ORDER: tuple[State, ...] = ("finished", "pruned", "unfinished", "failed")


@contextlib.contextmanager
def opened(database: Path, study: Study) -> Iterator[optuna.Study]:
    """The search that is kept in an SQLite file, which is begun where there is none."""
    with _quiet():
        # connecting by the path itself, because Optuna reads braces in an address as fields to fill in
        storage = RDBStorage(
            "sqlite:///study.db",
            engine_kwargs={"creator": lambda: sqlite3.connect(database, timeout=60, check_same_thread=False)},
        )
        few = _FINISHED_BEFORE_PRUNING
        median = MedianPruner(n_startup_trials=few, n_warmup_steps=_FIRST_PRUNED_EVALUATION, n_min_trials=few)
        pruner = median if study.pruning else NopPruner()
        try:
            yield optuna.create_study(storage=storage, study_name=_NAME, pruner=pruner, load_if_exists=True)
        finally:
            storage.remove_session()
            storage.engine.dispose()


def begin(search: optuna.Study, searched: Searched) -> bool:
    """Let the first trial have the recipe's own values; gives whether the space holds them."""
    own, fields = searched.own_values(), _fields(searched, searched.file.recipe.method)
    if not all(name in own and holds(searched.study.space[name], own[name]) for name in fields):
        return False
    search.enqueue_trial({name: own[name] for name in fields})
    return True


def ask(search: optuna.Study, searched: Searched) -> tuple[Trial, dict[str, Scalar]]:
    """The trial that another process did not bring to its end, or a new one; with its values.

    The lock on the folder says that no other process is at work in it.
    """
    left = search.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    trial = Trial(search, left[0]._trial_id) if left else search.ask()
    values: dict[str, Scalar] = {}
    if "method" in searched.study.space:
        values["method"] = _suggested(search, trial, searched.study, "method")
    for name in _fields(searched, values.get("method")):
        if name not in values:
            values[name] = _suggested(search, trial, searched.study, name)
    return trial, values


def judge(trial: Trial) -> Callable[[int, float], bool]:
    """Says of an evaluation, by its number and loss, whether a trial is to be ended early."""

    def is_hopeless(number: int, loss: float) -> bool:
        known = trial.storage.get_trial(trial._trial_id).intermediate_values
        if number not in known:  # it was told before the process was killed
            trial.report(loss, number)
        return trial.should_prune()

    return is_hopeless


def tell(search: optuna.Study, trial: Trial, outcome: Outcome) -> None:
    """Write down how a trial ended; one that has not is left as it is."""
    if outcome.state == "finished":
        search.tell(trial, outcome.eval_loss)
    elif outcome.state == "pruned":
        search.tell(trial, state=TrialState.PRUNED)
    elif outcome.state == "failed":
        trial.set_user_attr("error", outcome.error)
        search.tell(trial, state=TrialState.FAIL)


def importances(search: optuna.Study) -> dict[str, float]:
    """Each field's share of what tells good trials from others, the greatest first; nothing of too few trials.

    It is PED-ANOVA (Watanabe et al. 2023), which takes the best tenth for good ones.
    """
    finished = search.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < _FINISHED_FOR_IMPORTANCES or len({trial.value for trial in finished}) < 2:
        return {}
    return dict(get_param_importances(search, evaluator=PedAnovaImportanceEvaluator()))


def _fields(searched: Searched, method: Scalar) -> list[str]:
    unused = searched.unused_by(method)
    return [name for name in searched.study.space if not name.startswith(unused)]


def _suggested(search: optuna.Study, trial: Trial, study: Study, name: str) -> Scalar:
    """A trial's value of a field: its own, or one drawn by a seed of its own, so that it depends on its number only."""
    digest = hashlib.sha256(f"{study.seed} {trial.number} {name}".encode()).digest()
    search.sampler = TPESampler(n_startup_trials=_RANDOM_TRIALS, seed=int.from_bytes(digest[:4]))
    span = study.space[name]
    if isinstance(span, list):
        return trial.suggest_categorical(name, span)
    if span.is_whole:
        return trial.suggest_int(name, int(span.low), int(span.high), step=int(span.step or 1), log=span.log)
    return trial.suggest_float(name, span.low, span.high, step=span.step, log=span.log)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's own messages."""
    before: Any = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


@dataclass(frozen=True)
class Tried:
    """One trial."""

    number: int | None  # None for the recipe's own values, where the space does not hold them
    run: str  # its run folder, within the search's
    state: State
    values: dict[str, Scalar]
    eval_loss: float | None
    """Nats for each token in the loss of the validation data: after training, or when the trial was ended early."""

    perplexity: float | None
    error: str | None


@dataclass(frozen=True)
class Tuned:
    """What a search has found."""

    output: str
    trials: list[Tried]  # those that were finished, by their loss; then the others
    trials_left: int
    best: Tried | None
    best_recipe: str  # the recipe file of the best trial
    recipe: Tried | None  # the trial with the recipe's own values, if it was finished
    gain: float | None  # by how much the best validation loss is below the recipe's
    importances: dict[str, float]
    """Each field's share of what tells good trials from others; empty where there are too few."""


def run_name(number: int | None) -> str:
    """The run folder of a trial, within the search's."""
    return f"trials/{OUTSIDE if number is None else f'{number:03}'}"


def tried(search: Search, searched: Searched) -> list[Tried]:
    """All trials that have begun: those that were finished, the best first, then the others."""
    own = search.user_attrs.get(OUTSIDE)
    rows = [_row(None, searched.own_values(), Outcome(**own))] if own else []
    for trial in search.get_trials(deepcopy=False):
        if trial.state.name in _STATES:
            state, seen = _STATES[trial.state.name], trial.intermediate_values
            loss = trial.value if state == "finished" else seen[max(seen)] if seen and state == "pruned" else None
            rows.append(_row(trial.number, trial.params, Outcome(state, loss, trial.user_attrs.get("error"))))
    return sorted(
        rows,
        key=lambda row: (
            _ORDER.index(row.state),
            math.inf if row.eval_loss is None else row.eval_loss,
            -1 if row.number is None else row.number,
        ),
    )


def tuned(search: Search, searched: Searched, output: str, best_recipe: str, left: int) -> Tuned:
    """What a search has found so far."""
    rows = tried(search, searched)
    finished = [row for row in rows if row.state == "finished"]
    own = next((row for row in finished if row.number == (None if OUTSIDE in search.user_attrs else 0)), None)
    best = finished[0] if finished else None
    gain = None
    if own and best and own.eval_loss is not None and best.eval_loss is not None:
        gain = own.eval_loss - best.eval_loss
    return Tuned(output, rows, left, best, best_recipe, own, gain, importances(search))


def _row(number: int | None, values: dict[str, Scalar], outcome: Outcome) -> Tried:
    loss = outcome.eval_loss
    known = loss is not None and math.isfinite(loss)
    # beyond that, the perplexity of a loss is no finite number
    perplexity = math.exp(loss) if loss is not None and loss < 700 else None
    return Tried(number, run_name(number), outcome.state, values, loss if known else None, perplexity, outcome.error)
