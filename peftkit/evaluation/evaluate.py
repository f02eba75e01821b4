"""How good a target is on held-out data."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.adapters.files import AS_RECORDED, GivenBase
from peftkit.adapters.target import Opened, find_target, open_base, open_target
from peftkit.data.prepare import Prepared, count_words, prepare_validation
from peftkit.data.prompts import prompt_of, wanted
from peftkit.errors import FieldError, InputError, RunError, TargetError
from peftkit.evaluation.choices import ChoiceScores, Question, read_questions, score_choices
from peftkit.evaluation.generation import TextScores, score_texts, write
from peftkit.evaluation.perplexity import Difference, DocumentLosses, difference, measure_documents
from peftkit.models.device import detect_hardware
from peftkit.models.loss import Loss
from peftkit.models.start import padding_id, positions
from peftkit.planning.decisions import ChosenPrecision, choose_precision
from peftkit.planning.hardware import Hardware
from peftkit.recipe.hyperparameters import Training
from peftkit.recipe.schema import Base, Data, Generation, Recipe, Source
from peftkit.shortage import memory_for
from peftkit.storage import write_text

__all__ = ["Baseline", "Evaluation", "Forgetting", "Measures", "data_of", "evaluate_target", "recorded_recipe"]


@dataclass(frozen=True)
class Measures:
    """What is measured of a target besides its loss, and how."""

    generation: Generation | None = None  # generate completions so, and score them
    save: Path | None = None  # a file for the completions: JSON Lines of `prompt`, `written` and `references`
    max_length: int | None = None  # tokens of a window, where these are not to be the data's `max_length`
    stride: int | None = None
    """Tokens between the beginnings of two windows of a document that is longer than `max_length`; None lays documents
    out as in training."""

    baseline: str | None = None  # another target to measure on the same documents
    choices: Path | None = None  # questions with several answers
    forgetting: Path | None = None  # a text of the kind that the base was good at


@dataclass(frozen=True)
class Baseline:
    """Another target on the same documents."""

    target: str
    eval_loss: float
    perplexity: float
    difference: Difference  # how much more loss the target has
    text: TextScores | None = None  # of its completions, if they were asked for


@dataclass(frozen=True)
class Forgetting:
    """What a target has lost of what its base knew."""

    data: dict[str, Any]
    eval_loss: float
    perplexity: float
    base: Baseline


@dataclass(frozen=True)
class Evaluation:
    """What was measured, on what."""

    target: str
    kind: str
    method: str | None  # None for a model that peftkit did not train
    data: dict[str, Any]
    documents: int  # that have a token in the loss
    tokens: int  # in the loss, which is a mean over them
    max_length: int
    stride: int | None
    eval_loss: float
    standard_error: float | None  # of the loss, over documents; None where there is one
    perplexity: float
    word_perplexity: float | None
    """`exp` of the loss for each word between spaces; None for data that is no plain text."""

    generation: dict[str, Any] | None  # how the completions were written; None where that was not asked for
    text: TextScores | None  # of its completions
    choices: ChoiceScores | None
    baseline: Baseline | None
    forgetting: Forgetting | None


def recorded_recipe(name: str, *, needed: bool) -> Recipe | None:
    """The recipe that a target was made from, or None where none is recorded and none is needed.

    Raises:
        TargetError: one is needed, as its data are to be measured on.
    """
    recipe = find_target(name).recipe
    if recipe is None and needed:
        remedy = "Name a file with --data, or a recipe with --recipe."
        raise TargetError("records no recipe, so there is no data to evaluate on.", where=name, remedy=remedy)
    return recipe


def data_of(recipe: Recipe | None, file: Path | None, stride: int | None, *, where: str) -> Data:
    """What to measure on: a recipe's own data, or a file that is read as these are.

    Without a recipe a file is plain text, and with windows that overlap it is one long document.

    Raises:
        InputError: the recipe has no validation data; `where` names it in the message.
    """
    if file is None:
        if recipe is None or recipe.data.validation is None:
            raise InputError("the recipe has no validation data.", where=where, remedy="Name a file with --data.")
        return recipe.data
    source = Source(path=str(file))
    if recipe is not None:
        return recipe.data.model_copy(update={"validation": source})
    plain = Data(train=source, validation=source)
    return plain if stride is None else plain.model_copy(update={"sample_by": "document"})


def evaluate_target(
    name: str, data: Data, measures: Measures = Measures(), given: GivenBase = AS_RECORDED
) -> Evaluation:
    """Measure a target on the validation rows of `data`.

    Raises:
        InputError: the target cannot be opened, the data cannot be read, or the stride is longer than a window.
        RunError: the loss is not a finite number.
        MemoryRunError: the target, or a batch of its windows, does not fit into memory.
    """
    questions = read_questions(measures.choices) if measures.choices else []
    base = _base_of(name) if measures.forgetting else None
    hardware = detect_hardware()
    opened = open_target(find_target(name), hardware.device, given)
    measured = _Measured.of(name, opened, data, measures, _precision(opened.target.recipe, hardware))
    theirs = None
    if measures.baseline:
        other = open_target(find_target(measures.baseline), hardware.device)
        theirs = _Measured.of(measures.baseline, other, measured.data, measures, measured.precision)
    loss = measured.losses.loss
    words = count_words(measured.prepared, opened.tokenizer)
    by_word = Loss(loss.total, words, loss.sequences).perplexity if words else math.inf
    return Evaluation(
        target=name,
        kind=opened.target.kind,
        method=opened.target.recipe.method if opened.target.recipe else None,
        data=measured.prepared.identity,
        documents=loss.sequences,
        tokens=loss.tokens,
        max_length=measured.data.max_length,
        stride=measures.stride,
        eval_loss=loss.mean,
        standard_error=measured.losses.standard_error,
        perplexity=loss.perplexity,
        word_perplexity=by_word if math.isfinite(by_word) else None,  # JSON has no number for more
        generation=measures.generation.model_dump(mode="json") if measures.generation else None,
        text=measured.text(measures.generation, measures.save) if measures.generation else None,
        choices=measured.choose(questions) if questions else None,
        baseline=measured.against(theirs, measures) if theirs else None,
        forgetting=_forgotten(measured, base, measures.forgetting, measures) if measures.forgetting and base else None,
    )


@dataclass(frozen=True)
class _Measured:
    """An open target with its losses."""

    name: str
    opened: Opened
    data: Data
    prepared: Prepared
    losses: DocumentLosses
    precision: ChosenPrecision  # that it was computed in; what it is compared with is computed in the same

    @classmethod
    def of(cls, name: str, opened: Opened, data: Data, measures: Measures, precision: ChosenPrecision) -> _Measured:
        seen = positions(opened.model.config) or sys.maxsize
        data = data.model_copy(update={"max_length": min(measures.max_length or data.max_length, seen)})
        if measures.stride is not None and measures.stride > data.max_length:
            remedy = "A longer stride would leave tokens out; lower it."
            raise InputError(f"is more than a window, {data.max_length} tokens.", where="--stride", remedy=remedy)
        prepared = prepare_validation(data, opened.tokenizer)
        if prepared is None:
            raise TargetError("its recipe has no validation data.", where=name, remedy="Name a file with --data.")
        pad, batch_size = padding_id(opened.tokenizer), _batch_size(opened)
        with _windows(name, data.max_length):
            losses = measure_documents(opened.model, prepared, data, pad, batch_size, precision, measures.stride)
        if not losses.loss.total < float("inf"):
            raise RunError("its loss is not a finite number.", where=name)
        return cls(name, opened, data, prepared, losses, precision)

    def text(self, generation: Generation, save: Path | None = None) -> TextScores:
        """Scores of the completions that the target writes."""
        groups = wanted(self.prepared, self.opened.tokenizer)
        prompts = [group.ids for group in groups]
        written = write(self.opened.model, self.opened.tokenizer, prompts, generation, self.prepared.end_tokens)
        if save:
            pairs = zip(groups, written, strict=True)
            rows = ({"prompt": each.prompt, "written": text, "references": each.references} for each, text in pairs)
            write_text(save, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return score_texts(written, [group.references for group in groups])

    def choose(self, questions: list[Question]) -> ChoiceScores:
        """Accuracy on questions, whose prompts have the form that the target was trained on."""
        recipe, tokenizer = self.opened.target.recipe, self.opened.tokenizer
        if recipe is not None:
            questions = [replace(each, prompt=prompt_of(each.prompt, recipe.data, tokenizer)) for each in questions]
        with _windows(self.name, self.data.max_length):
            return score_choices(self.opened.model, tokenizer, questions, _batch_size(self.opened), self.precision)

    def against(self, theirs: _Measured, measures: Measures) -> Baseline:
        """Another target on the same documents, and the difference."""
        if not np.array_equal(self.losses.tokens, theirs.losses.tokens):
            remedy = "Compare their word_perplexity."
            raise InputError("splits the text into other tokens than the target.", where=theirs.name, remedy=remedy)
        loss = theirs.losses.loss
        text = theirs.text(measures.generation) if measures.generation else None
        return Baseline(theirs.name, loss.mean, loss.perplexity, difference(self.losses, theirs.losses), text)


def _precision(recipe: Recipe | None, hardware: Hardware) -> ChosenPrecision:
    """What a recipe trains in here; where this machine has not what it asks for, what it would choose itself."""
    with contextlib.suppress(FieldError):
        return choose_precision(recipe.precision if recipe else "auto", hardware).choice
    return choose_precision("auto", hardware).choice


def _windows(name: str, tokens: int) -> AbstractContextManager[None]:
    """What windows of so many tokens are measured within, to say what would fit where memory is short."""
    remedy = "Free memory that others use, or measure shorter windows with --max-length."
    return memory_for(f"evaluating windows of {tokens:,} tokens", where=name, remedy=remedy)


def _batch_size(opened: Opened) -> int:
    training = opened.target.recipe.training if opened.target.recipe else Training()
    return training.per_device_eval_batch_size


def _base_of(name: str) -> Base:
    """The untouched base of a target; TargetError if it is no fine-tuned model, or began from none."""
    recipe = find_target(name).recipe
    if recipe is None or recipe.base.init:
        what = "began from no base, so it has forgotten none." if recipe else "records no base."
        raise TargetError(what, where=name, remedy="Leave out --forgetting, or measure two targets with --baseline.")
    return recipe.base


def _forgotten(ours: _Measured, base: Base, text: Path, measures: Measures) -> Forgetting:
    """The target and its untouched base on a text that neither was fine-tuned on."""
    source = Source(path=str(text))
    data = Data(train=source, validation=source, max_length=ours.data.max_length)
    windows = Measures(stride=measures.stride)
    measured = _Measured.of(ours.name, ours.opened, data, windows, ours.precision)
    opened = open_base(base, detect_hardware().device)
    theirs = _Measured.of(str(base.model), opened, measured.data, windows, ours.precision)
    loss = measured.losses.loss
    return Forgetting(measured.prepared.identity, loss.mean, loss.perplexity, measured.against(theirs, windows))
