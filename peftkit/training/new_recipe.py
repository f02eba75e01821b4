"""A recipe from a few answers, each of its values with the reason for it."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from peftkit import console
from peftkit.data.formats import FORMATS
from peftkit.models.outline import activation_bytes
from peftkit.planning.choice import BATCH, Choice, choose_method, in_words, length_for, rows_that_fit
from peftkit.planning.decisions import ChosenPrecision, choose_precision
from peftkit.planning.hardware import Hardware
from peftkit.recipe.advice import shown
from peftkit.recipe.advised import ADVICE, usual_rate
from peftkit.recipe.fields import find_fields
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe, parse_recipe
from peftkit.recipe.methods import METHODS, Method
from peftkit.recipe.references import BUILTIN_PREFIX
from peftkit.recipe.schema import Format, Source
from peftkit.storage import write_text
from peftkit.training.survey import SurveyedBase, SurveyedData, survey_base, survey_data

__all__ = ["Answers", "Draft", "Reasoned", "draft_text", "recipe_name", "write_new_recipe"]


@dataclass(frozen=True)
class Answers:
    """What a recipe is made from."""

    data: str
    """A file, or a data set as `NAME` or `NAME:CONFIGURATION`."""

    base: str
    memory_bytes: float | None = None
    """Of the machine that will train; None if it is this one."""

    format: Format = "auto"
    method: Method | None = None
    """None to choose it by size and memory."""


def write_new_recipe(answers: Answers, destination: Path, hardware: Hardware) -> None:
    """Write a recipe that passes every check of a recipe; `destination` must be free.

    Raises:
        InputError: the data or the base cannot be used.
    """
    base = survey_base(answers.base)
    data = survey_data(answers.data, answers.format, base.tokenizer)
    memory = answers.memory_bytes or hardware.memory_bytes
    elsewhere = answers.memory_bytes is not None
    precision: ChosenPrecision = "bf16" if elsewhere else choose_precision("auto", hardware).choice
    choice = choose_method(base.parameters, memory, half=elsewhere or hardware.has_bf16, wanted=answers.method)
    if not choice.fits:
        console.warning(f"{choice.method}: {choice.why}.")
    length, why_length = _length(base, data)
    folder = destination.resolve().parent
    draft: Draft = {
        "name": Reasoned(recipe_name(destination.stem)),
        "method": Reasoned(choice.method, choice.why),
        "base": _base(base, choice, folder),
        **_adapter(choice.method),
        "data": {**_data(data, folder), "max_length": Reasoned(length, why_length)},
        "training": {
            **_training(base, choice.method),
            **_batch(choice, memory, _row_bytes(base, length, precision, hardware)),
            "eval_strategy": _evaluation(data),
        },
    }
    heading = (
        "Written by `peftkit recipes new`. `peftkit explain FIELD` says who found a value usual and what others do, "
        "`peftkit plan` measures what the recipe takes."
    )
    text = draft_text(draft, heading)
    parse_recipe(text, destination)
    write_text(destination, text)


def recipe_name(text: str) -> str:
    """A text as the name of a recipe."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "recipe"


def _base(base: SurveyedBase, choice: Choice, folder: Path) -> Draft:
    local = Path(base.model).expanduser()
    is_folder = not base.model.startswith(BUILTIN_PREFIX) and local.is_dir()
    model = _relative(local.resolve(), folder) if is_folder else base.model
    size = f"{in_words(base.parameters)} parameters, by {base.known_from}" if base.parameters else None
    found: dict[str, Reasoned] = {"model": Reasoned(model, size or "not on this machine, so its size is not known")}
    if choice.dtype != "auto":
        found["dtype"] = Reasoned(choice.dtype, "frozen weights in 2 bytes each: in 4 they do not fit")
    return found


def _adapter(method: Method) -> Draft:
    """The section with the settings of the adapter; nothing where the weights themselves are trained."""
    section, drafted = METHODS[method].section, METHODS[method].drafted
    if section is None:
        return {}
    paths = {name: f"{section}.{name}" for name in drafted}
    return {
        section: {
            name: Reasoned(_default(path) if drafted[name] is None else drafted[name], _usual(path, method))
            for name, path in paths.items()
        }
    }


def _data(data: SurveyedData, folder: Path) -> Draft:
    found: dict[str, Reasoned | Draft] = {"train": _source(data.train, folder)}
    if data.validation:
        found["validation"] = _source(data.validation, folder)
    elif data.share:
        held = "held out of the training data, equal documents together"
        found["validation"] = Reasoned(data.share, held if data.train.path else f"{held}; or name a split's source")
    why = data.why or "told from the columns, once they are read"
    found["format"] = Reasoned(data.format, why)
    return found


def _evaluation(data: SurveyedData) -> Reasoned:
    if data.validation or data.share:
        return Reasoned("epoch", "the validation loss after each epoch shows when there are too many")
    return Reasoned("no", "too few documents differ to hold some out")


def _source(source: Source, folder: Path) -> Draft:
    if isinstance(source.path, str):
        return {"path": Reasoned(_relative(Path(source.path), folder))}
    values = source.model_dump(include={"dataset", "name", "split"}, exclude_none=True)
    return {name: Reasoned(value) for name, value in values.items()}


def _length(base: SurveyedBase, data: SurveyedData) -> tuple[int, str]:
    """`max_length`, and why."""
    default = int(_default("data.max_length"))
    length = default if base.positions is None else min(default, base.positions)
    form = FORMATS.get(data.format)
    if form and form.is_plain_text:
        return length, "longer texts go on in a further sequence, and short ones are packed: nothing is lost"
    if data.longest is None:
        return length, "`peftkit data` tells how long the documents are"
    length = length_for(data.longest, base.positions)
    seen = f"99% of the first documents have at most {data.longest:,} tokens"
    return length, seen if length >= data.longest else f"{seen}, and the base sees no more: the rest is cut"


def _training(base: SurveyedBase, method: Method) -> dict[str, Reasoned]:
    rates = usual_rate(method)
    rate = Reasoned(rates.middle, f"the middle of the usual {rates} ({rates.source})")
    if base.model.startswith(BUILTIN_PREFIX):
        tried = load_recipe(find_recipe("quickstart")).recipe
        rate = Reasoned(tried.training.learning_rate, f"as in the recipe {tried.name}: a base as small takes more")
    epochs = "training.num_train_epochs"
    return {
        "learning_rate": rate,
        "num_train_epochs": Reasoned(_default(epochs), _usual(epochs, method)),
        "warmup_steps": Reasoned(0.05, _usual("training.warmup_steps", method)),
    }


def _row_bytes(base: SurveyedBase, length: int, precision: ChosenPrecision, hardware: Hardware) -> int | None:
    """What one row keeps for the backward pass; None where the base is not at hand."""
    if base.located is None:
        return None
    return activation_bytes(base.located.structure(base.located.config()), 1, length, precision, hardware)


def _batch(choice: Choice, memory: float, row_bytes: int | None) -> dict[str, Reasoned]:
    """The rows of one pass by what the memory holds beside the weights, and passes up to a whole batch."""
    rows, why = 4, "what a layer needs is not known here; `peftkit train --auto-batch` halves it where it must"
    checkpointing = False
    if row_bytes is not None and choice.held_bytes is not None:
        fitting = rows_that_fit(row_bytes, memory, choice.held_bytes)
        rows, checkpointing = max(fitting, 1), fitting == 0
        why = "about what fits beside the weights, and at most a batch"
    found = {
        "per_device_train_batch_size": Reasoned(rows, why),
        "gradient_accumulation_steps": Reasoned(BATCH // rows, f"{BATCH} sequences a step (Devlin et al. 2019, A.3)"),
    }
    if rows < int(_default("training.per_device_eval_batch_size")):
        found["per_device_eval_batch_size"] = Reasoned(rows, "as in training")
    if checkpointing:
        found["activation_checkpointing"] = Reasoned(True, "one row alone would not fit with its activations kept")
    return found


def _usual(field: str, method: Method) -> str | None:
    usual, measure = ADVICE[field].usual_for(method), ADVICE[field].measure
    return f"usual: {f'{measure.name} ' if measure else ''}{usual}" if usual else None


def _default(path: str) -> float | str:
    (field,) = find_fields(path)
    value: float | str = field.default
    return value


def _relative(path: Path, folder: Path) -> str:
    """A path from the recipe's folder, which what it names may move together with."""
    found = os.path.relpath(path, folder)
    return found if found.startswith(".") or path.is_file() else f"./{found}"


_WIDTH = 120
_PLAIN = re.compile(r"[A-Za-z./][\w./-]*(?::[\w-]+)*")
_NOT_TEXT = re.compile(r"true|false|null", re.IGNORECASE)


@dataclass(frozen=True)
class Reasoned:
    """A value, and why it was chosen."""

    value: str | float | bool
    why: str | None = None


Draft: TypeAlias = Mapping[str, "Reasoned | Draft"]


def draft_text(draft: Draft, heading: str) -> str:
    """The YAML text of a draft, `heading` being its first comment."""
    parts = [*_comment(heading, 0), *_lines(draft, 0)]
    return "\n".join(parts) + "\n"


def _lines(draft: Draft, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, item in draft.items():
        if not isinstance(item, Reasoned):
            if depth == 0:
                yield ""
            yield f"{indent}{name}:"
            yield from _lines(item, depth + 1)
            continue
        line = f"{indent}{name}: {_scalar(item.value)}"
        beside = f"{line} # {item.why}"
        if item.why and len(beside) > _WIDTH:
            yield from _comment(item.why, depth)
        yield beside if item.why and len(beside) <= _WIDTH else line


def _comment(text: str, depth: int) -> list[str]:
    mark = f"{'  ' * depth}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=mark, subsequent_indent=mark, break_on_hyphens=False)


def _scalar(value: str | float | bool) -> str:
    """A value as YAML: text without quotes where it is read as the same text."""
    if not isinstance(value, str):
        return shown(value)
    plain = _PLAIN.fullmatch(value) and not _NOT_TEXT.fullmatch(value)
    return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())
