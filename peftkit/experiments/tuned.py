"""What a search has found: its trials, and the best of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.experiments.search import importances
from peftkit.experiments.trials import Outcome, State
from peftkit.recipe.study import Scalar
from peftkit.recipe.study_file import Searched

if TYPE_CHECKING:
    from optuna import Study as Search
    from optuna.trial import FrozenTrial

__all__ = ["OUTSIDE", "Tried", "Tuned", "run_name", "tried", "tuned"]

OUTSIDE = "recipe"
"""The run of the recipe's own values where the space does not hold them, and where the search keeps how it ended."""

_STATES: dict[str, State] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "unfinished"}
_ORDER: tuple[State, ...] = ("finished", "pruned", "unfinished", "failed")


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
    best: Tried | None
    best_recipe: str
    """The recipe file of the best trial."""

    recipe: Tried | None
    """The trial with the recipe's own values, if it was finished."""

    gain: float | None
    """By how much the best validation loss is below the recipe's."""

    importances: dict[str, float]
    """Each field's share of what tells good trials from others; empty where there are too few."""


def run_name(number: int | None) -> str:
    """The run folder of a trial, within the search's."""
    return f"trials/{OUTSIDE if number is None else f'{number:03}'}"


def tried(search: Search, searched: Searched) -> list[Tried]:
    """All trials that have begun: those that were finished, the best first, then the others."""
    own = search.user_attrs.get(OUTSIDE)
    rows = [_row(None, searched.own_values(), Outcome(**own))] if own else []
    rows += [_of(trial) for trial in search.get_trials(deepcopy=False) if trial.state.name in _STATES]
    return sorted(rows, key=_rank)


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


def _of(trial: FrozenTrial) -> Tried:
    state = _STATES[trial.state.name]
    seen = trial.intermediate_values
    loss = trial.value if state == "finished" else seen[max(seen)] if seen and state == "pruned" else None
    return _row(trial.number, trial.params, Outcome(state, loss, trial.user_attrs.get("error")))


def _row(number: int | None, values: dict[str, Scalar], outcome: Outcome) -> Tried:
    loss = outcome.eval_loss
    known = loss is not None and math.isfinite(loss)
    perplexity = math.exp(loss) if loss is not None and loss < _LARGEST else None
    return Tried(number, run_name(number), outcome.state, values, loss if known else None, perplexity, outcome.error)


_LARGEST = 700.0
"""A loss whose perplexity is still a number."""


def _rank(row: Tried) -> tuple[int, float, int]:
    loss = math.inf if row.eval_loss is None else row.eval_loss
    return _ORDER.index(row.state), loss, -1 if row.number is None else row.number
