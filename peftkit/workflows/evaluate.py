"""How good a target is on held-out data."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftkit.adapters.target import find_target
from peftkit.data.prepare import Prepared, count_words, prepare_validation
from peftkit.errors import InputError, RunError, TargetError
from peftkit.evaluation.generation import exact_match
from peftkit.evaluation.perplexity import Difference, DocumentLosses, difference, measure_documents
from peftkit.models.adapter import AS_RECORDED, GivenBase
from peftkit.models.device import detect_hardware
from peftkit.models.loss import Loss
from peftkit.models.start import padding_id
from peftkit.models.target import Opened, open_target
from peftkit.recipe.hyperparameters import Training
from peftkit.recipe.schema import Data

__all__ = ["Baseline", "Evaluation", "Measures", "evaluate_target", "recorded_data"]


@dataclass(frozen=True)
class Measures:
    """What is measured of a target, and how."""

    exact_match: bool = False
    """Let it write the completions, and count those that are right."""

    max_new_tokens: int = 64
    max_length: int | None = None
    """Tokens of a window, where these are not to be the data's `max_length`."""

    stride: int | None = None
    """Tokens between the beginnings of two windows of a document that is longer than `max_length`; None lays documents
    out as in training."""

    baseline: str | None = None
    """Another target to measure on the same documents."""


@dataclass(frozen=True)
class Baseline:
    """Another target on the same documents."""

    target: str
    eval_loss: float
    perplexity: float
    difference: Difference


@dataclass(frozen=True)
class Evaluation:
    """What was measured, on what."""

    target: str
    kind: str
    method: str | None
    """None for a model that peftkit did not train."""

    data: dict[str, Any]
    documents: int
    """With a taught token."""

    tokens: int
    """Taught tokens, which the loss is a mean over."""

    max_length: int
    stride: int | None
    eval_loss: float
    standard_error: float | None
    """Of the loss, over documents; None where there is one."""

    perplexity: float
    word_perplexity: float | None
    """`exp` of the loss for each word between spaces; None for data that is no plain text."""

    exact_match: float | None
    """Share of greedy continuations that are the wanted completion; None where it was not asked for."""

    baseline: Baseline | None


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
    name: str, data: Data, measures: Measures = Measures(), given: GivenBase = AS_RECORDED
) -> Evaluation:
    """Measure a target on the validation rows of `data`.

    Raises:
        InputError: the target cannot be opened, the data cannot be read, or the stride is longer than a window.
        RunError: the loss is not a finite number.
    """
    opened = open_target(find_target(name), detect_hardware().device, given)
    seen = getattr(opened.model.config, "max_position_embeddings", None) or sys.maxsize
    data = data.model_copy(update={"max_length": min(measures.max_length or data.max_length, seen)})
    if measures.stride is not None and measures.stride > data.max_length:
        remedy = "A longer stride would leave tokens out; lower it."
        raise InputError(f"is more than a window, {data.max_length} tokens.", where="--stride", remedy=remedy)
    prepared = _prepared(name, data, opened)
    losses = _losses(name, data, opened, prepared, measures)
    words = count_words(prepared, opened.tokenizer)
    wanted = pairs(prepared, opened.tokenizer) if measures.exact_match else []
    recipe = opened.target.recipe
    return Evaluation(
        target=name,
        kind=opened.target.kind,
        method=recipe.method if recipe else None,
        data=prepared.identity,
        documents=losses.loss.sequences,
        tokens=losses.loss.tokens,
        max_length=data.max_length,
        stride=measures.stride,
        eval_loss=losses.loss.mean,
        standard_error=losses.standard_error,
        perplexity=losses.loss.perplexity,
        word_perplexity=_per_word(losses.loss, words) if words else None,
        exact_match=exact_match(opened.model, opened.tokenizer, wanted, max_new_tokens=measures.max_new_tokens)
        if measures.exact_match
        else None,
        baseline=_compared(losses, data, measures) if measures.baseline else None,
    )


def _prepared(name: str, data: Data, opened: Opened) -> Prepared:
    prepared = prepare_validation(data, opened.tokenizer)
    if prepared is None:
        raise TargetError("its recipe has no validation data.", where=name, remedy="Name a file with --data.")
    return prepared


def _losses(name: str, data: Data, opened: Opened, prepared: Prepared, measures: Measures) -> DocumentLosses:
    training = opened.target.recipe.training if opened.target.recipe else Training()
    batch_size = training.per_device_eval_batch_size
    pad = padding_id(opened.tokenizer)
    losses = measure_documents(opened.model, prepared, data, pad, batch_size, measures.stride)
    if not losses.loss.total < float("inf"):
        raise RunError("its loss is not a finite number.", where=name)
    return losses


def _per_word(loss: Loss, words: int) -> float | None:
    """The perplexity of words, or None for one that is beyond the largest float, which JSON has not."""
    found = Loss(loss.total, words, loss.sequences).perplexity
    return found if math.isfinite(found) else None


def _compared(ours: DocumentLosses, data: Data, measures: Measures) -> Baseline:
    """The baseline's loss on the same documents, and the difference."""
    name = str(measures.baseline)
    opened = open_target(find_target(name), detect_hardware().device)
    theirs = _losses(name, data, opened, _prepared(name, data, opened), measures)
    if not np.array_equal(ours.tokens, theirs.tokens):
        remedy = "Compare their word_perplexity."
        raise InputError("splits the text into other tokens than the target.", where=name, remedy=remedy)
    return Baseline(name, theirs.loss.mean, theirs.loss.perplexity, difference(ours, theirs))
