"""How good a target is on held-out data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftkit.adapters.target import find_target
from peftkit.data.prepare import pairs, prepare_validation
from peftkit.errors import RunError, TargetError
from peftkit.evaluation.generation import exact_match
from peftkit.evaluation.perplexity import measure_loss
from peftkit.models.adapter import AS_RECORDED, GivenBase
from peftkit.models.device import detect_hardware
from peftkit.models.start import padding_id
from peftkit.models.target import open_target
from peftkit.recipe.hyperparameters import Training
from peftkit.recipe.schema import Data

__all__ = ["Evaluation", "evaluate_target", "recorded_data"]


@dataclass(frozen=True)
class Evaluation:
    """What was measured, on what."""

    target: str
    kind: str
    method: str | None
    """None for a model that peftkit did not train."""

    data: dict[str, Any]
    sequences: int
    tokens: int
    """Taught tokens, which the loss is a mean over."""

    eval_loss: float
    perplexity: float
    exact_match: float | None
    """Share of greedy continuations that are the wanted completion; None where it was not asked for."""


def recorded_data(name: str) -> Data:
    """The data section of the recipe that a target was made from.

    Raises:
        TargetError: none is recorded.
    """
    target = find_target(name)
    if target.recipe is None:
        raise TargetError(
            "records no recipe, so there is no data to evaluate on.",
            where=name,
            remedy="Name a file with --data, or a recipe with --recipe.",
        )
    return target.recipe.data


def evaluate_target(
    name: str, data: Data, *, exact: bool = False, max_new_tokens: int = 64, given: GivenBase = AS_RECORDED
) -> Evaluation:
    """Measure a target on the validation rows of `data`; with `exact`, let it write the completions too.

    Raises:
        InputError: the target cannot be opened or the data cannot be read.
        RunError: the loss is not a finite number.
    """
    target = find_target(name)
    opened = open_target(target, detect_hardware().device, given)
    prepared = prepare_validation(data, opened.tokenizer)
    if prepared is None:
        raise TargetError("its recipe has no validation data.", where=name, remedy="Name a file with --data.")
    wanted = pairs(prepared, opened.tokenizer) if exact else []
    training = target.recipe.training if target.recipe else Training()
    loss = measure_loss(opened.model, prepared, padding_id(opened.tokenizer), training.per_device_eval_batch_size)
    if not loss.total < float("inf"):
        raise RunError("its loss is not a finite number.", where=name)
    return Evaluation(
        target=name,
        kind=target.kind,
        method=target.recipe.method if target.recipe else None,
        data=prepared.identity,
        sequences=loss.sequences,
        tokens=loss.tokens,
        eval_loss=loss.mean,
        perplexity=loss.perplexity,
        exact_match=exact_match(opened.model, opened.tokenizer, wanted, max_new_tokens=max_new_tokens)
        if exact
        else None,
    )
