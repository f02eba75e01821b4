"""A study file: which fields of a recipe are searched over, in which ranges, and with how many trials.

    n_trials: 20
    space:
      training.learning_rate: {low: 1e-5, high: 1e-3, log: true}
      training.num_train_epochs: {low: 1, high: 5, step: 1}
      lora.r: [4, 8, 16]

The file is checked whole against the recipe that it varies, before anything is trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationError, model_validator

from peftkit.errors import Problem, RecipeError
from peftkit.recipe.document import Document, parse_document, read_source
from peftkit.recipe.loader import Layers, RecipeFile, load_recipe
from peftkit.recipe.methods import sections, unused_sections
from peftkit.recipe.schema import Recipe
from peftkit.recipe.section import Section, describe, disagree

__all__ = ["Range", "Scalar", "Searched", "Span", "Study", "holds", "load_study", "read_study", "settings"]

Scalar: TypeAlias = str | bool | int | float | None
Number: TypeAlias = float | int

_VARIED = ("training", *sections(), "quantization", "method", "precision")
_VARIED_FIELDS = ("base.dropout",)
_KEPT = {
    "data": "The trials are compared on the same data.",
    "base": "The trials begin at the same base; of its fields, base.dropout can be.",
    "training.seed": "The best seed is the luckiest one.",
    "training.data_seed": "The best seed is the luckiest one.",
    "training.eval_strategy": "The trials are measured alike.",
    "training.eval_steps": "The trials are measured alike.",
    "training.eval_delay": "The trials are measured alike.",
}
"""What is the same in all trials, and why."""


class Range(Section):
    """Numbers from a lowest to a highest one."""

    low: Number
    """Lowest value."""

    high: Number
    """Highest value, which may come too."""

    log: bool = False
    """Search over orders of magnitude: as often between 1e-5 and 1e-4 as between 1e-4 and 1e-3."""

    step: Annotated[Number, Field(gt=0)] | None = None
    """Distance between two values; with whole numbers, only whole ones come. Unset: any number, or any whole one where
    the field takes no other."""

    @property
    def is_whole(self) -> bool:
        """Whether all its values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.low >= self.high:
            disagree(("high", f"is {self.high:g}, not above low {self.low:g}. Change one of them."))
        if self.log and self.low <= 0:
            disagree(("low", f"is {self.low:g}, but must be above 0 for log. Change one of them."))
        if self.step is not None:
            steps = (self.high - self.low) / self.step
            if self.log:
                disagree(("step", "cannot act with log. Remove one of them."))
            if not math.isclose(steps, round(steps), abs_tol=1e-9):
                disagree(("step", f"does not lead from low {self.low:g} to high {self.high:g}. Change one of them."))
        return self


def _differ(choices: list[Scalar]) -> list[Scalar]:
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise ValueError("must name two values or more, each once. Set one value in the recipe, or by --set.")
    return choices


def _names_some(space: dict[str, Any]) -> dict[str, Any]:
    if not space:
        raise ValueError("names no field. Add one, as training.learning_rate: {low: 1e-5, high: 1e-3, log: true}.")
    return space


Span: TypeAlias = Annotated[
    Annotated[Range, Tag("Range")] | Annotated[list[Scalar], AfterValidator(_differ), Tag("Choices")],
    Discriminator(lambda span: "Choices" if isinstance(span, list) else "Range"),
]


class Study(Section):
    """A search for the values of some fields with which a recipe's validation loss is lowest."""

    n_trials: Annotated[int, Field(gt=0)] = 20
    """Trials in all: those that were finished, ended early or failed. The first has the recipe's own values."""

    time_limit_minutes: Annotated[float, Field(gt=0)] | None = None
    """After so many minutes the trial that trains is saved and the search ends; the same command resumes it."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Start of every random choice of the search. The seed of training is the recipe's in each trial."""

    pruning: bool = True
    """End trials early whose loss is worse than the median of the others at the same evaluation. Set it to false where
    the length of training is searched over: with half of a long training, a loss is worse than at the end of a short
    one."""

    space: Annotated[dict[str, Span], AfterValidator(_names_some)]
    """The fields, each with a range of numbers or with a list of values."""


def holds(span: Range | list[Scalar], value: Any) -> bool:
    """Whether a value is one that the search may come to."""
    if isinstance(span, list):
        return value in span
    if isinstance(value, bool) or not isinstance(value, int | float) or not span.low <= value <= span.high:
        return False
    if span.is_whole or span.step is not None:
        steps = (value - span.low) / (span.step or 1)
        return math.isclose(steps, round(steps), abs_tol=1e-9)
    return True


@dataclass(frozen=True)
class Searched:
    """A recipe, and the checked study of it."""

    path: Path
    method: str | None
    overrides: tuple[str, ...]  # what the command line says of the recipe, for all trials
    file: RecipeFile
    study: Study

    def with_values(self, values: Mapping[str, Scalar]) -> RecipeFile:
        """The recipe of a trial.

        Raises:
            RecipeError: the values do not go together.
        """
        return load_recipe(self.path, method=self.method, overrides=[*self.overrides, *settings(values)])

    def own_values(self) -> dict[str, Any]:
        """The recipe's own values of the fields that are searched over and that its method uses, as far as set."""
        values, found = self.file.recipe.model_dump(mode="json"), dict[str, Any]()
        for name in self.study.space:
            value: Any = values
            parts = () if name.startswith(self.unused_by(None)) else name.split(".")
            for part in parts:
                value = value.get(part, _UNSET) if isinstance(value, dict) else _UNSET
            if parts and value is not _UNSET:
                found[name] = value
        return found

    def unused_by(self, method: Any) -> tuple[str, ...]:
        """How the fields begin that a trial's method, or else the recipe's, does not use."""
        return tuple(f"{section}." for section in unused_sections(method or self.file.recipe.method))


_UNSET: Any = object()


def settings(values: Mapping[str, Scalar]) -> list[str]:
    """Values as `--set` takes them."""
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


def read_study(path: Path) -> tuple[Study, Document]:
    """Read a study file by a recipe's own rules, and check all of it that is no recipe's matter.

    Raises:
        RecipeError: everything that is wrong, together.
        InputError: the file cannot be read.
    """
    text = read_source(path, "study", "`peftkit tune --help` shows one.")
    document = parse_document(text, str(path), "`peftkit tune --help` shows a study.")
    layers = Layers()
    layers.merge(document.values, document.lines, str(path))
    problems = list(_nested(document, str(path)))
    study = None
    try:
        study = Study.model_validate(layers.values)
    except ValidationError as error:
        problems = problems or describe(error, layers, str(path), Study)
    if problems or study is None:
        raise RecipeError(problems)
    return study, document


def load_study(path: Path, recipe: Path, *, method: str | None = None, overrides: Sequence[str] = ()) -> Searched:
    """Read a study of a recipe, and see that the recipe takes each of its values.

    Raises:
        RecipeError: everything that is wrong, together.
        InputError: a file cannot be read.
    """
    study, document = read_study(path)
    file = load_recipe(recipe, method=method, overrides=overrides)
    searched = Searched(recipe, method, tuple(overrides), file, study)
    problems: list[Problem] = []
    space: dict[str, Range | list[Scalar]] = {}
    for name, span in study.space.items():
        where = f"{path}:{document.lines['space', name]}"
        refused = _refusal(searched, name)
        found = [Problem(where, f"space.{name}", *refused)] if refused else list(_refused_values(searched, name, where))
        problems += found
        space[name] = span if found else _typed(searched, name, span)
    problems += _unmeasured(searched, str(path), document)
    if problems:
        raise RecipeError(problems)
    return replace(searched, study=study.model_copy(update={"space": space}))


def _nested(document: Document, file: str) -> Iterator[Problem]:
    """Sections of a recipe in `space`, where whole names belong."""
    space = document.values.get("space")
    for name, inner in space.items() if isinstance(space, dict) else ():
        field = Recipe.model_fields.get(name)
        known = Range.model_fields.keys()
        if field and isinstance(inner, dict) and inner and not inner.keys() & known:
            remedy = f"Write the name of a field whole, as {name}.{next(iter(inner))}."
            yield Problem(f"{file}:{document.lines['space', name]}", f"space.{name}", "is no field.", remedy)


def _refusal(searched: Searched, name: str) -> tuple[str, str] | None:
    """Why a field cannot be varied, whatever its values are, and what to do."""
    first = name.partition(".")[0]
    if name.startswith(searched.unused_by(None)) and "method" not in searched.study.space:
        return f"is not used by method: {searched.file.recipe.method}.", "Remove it, or add method to space."
    if name == "method" and searched.method:
        return f"cannot be varied with --method {searched.method}.", "Leave one of them out."
    if name in _KEPT:
        return "cannot be varied.", _KEPT[name]
    if first in _VARIED or name in _VARIED_FIELDS or first not in Recipe.model_fields:
        return None  # the recipe itself says what is wrong with it, if anything is
    return "cannot be varied.", _KEPT.get(first, "It has no part in training, or is not the search's to choose.")


def _refused_values(searched: Searched, name: str, where: str) -> Iterator[Problem]:
    """What the recipe says against values of a field, each thing once."""
    span, told = searched.study.space[name], set()
    for value in span if isinstance(span, list) else (span.low, span.high):
        for problem in _against(searched, name, value):
            here = name == problem.field or name.startswith(f"{problem.field}.")
            what = problem.what if here else f"{json.dumps(value)}: {problem.field} {problem.what}"
            if what not in told:
                told.add(what)
                yield Problem(where, f"space.{name}", what, problem.remedy)


def _against(searched: Searched, name: str, value: Scalar) -> Sequence[Problem]:
    try:
        searched.with_values({name: value})
    except RecipeError as error:
        return error.problems
    return ()


def _typed(searched: Searched, name: str, span: Range | list[Scalar]) -> Range | list[Scalar]:
    """A range without a step is one of whole numbers only where the field takes no others."""
    if isinstance(span, list) or not span.is_whole or span.step is not None:
        return span
    if _against(searched, name, span.low + 0.5):
        return span
    return span.model_copy(update={"low": float(span.low), "high": float(span.high)})


def _unmeasured(searched: Searched, file: str, document: Document) -> Iterator[Problem]:
    """What is missing for a loss to compare the trials by, or to end them early by."""
    recipe = searched.file.recipe
    if recipe.data.validation is None:
        yield Problem(str(searched.path), "data.validation", "is missing: trials are compared by it.", "Add it.")
    elif searched.study.pruning and recipe.training.eval_strategy == "no":
        line = document.lines.get(("pruning",), 1)
        remedy = "Set it to epoch or steps, or pruning: false."
        yield Problem(f"{file}:{line}", "pruning", "needs the recipe's training.eval_strategy.", remedy)
