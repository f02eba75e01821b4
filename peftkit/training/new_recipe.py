"""A recipe from a few answers: the method and the batch that a machine has room for by rules of thumb, with reasons."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from peftkit import console
from peftkit.data.formats import FORMATS
from peftkit.models.outline import UncountedError, activation_bytes
from peftkit.planning.decisions import ChosenPrecision, choose_precision
from peftkit.planning.hardware import Hardware
from peftkit.recipe.advice import shown
from peftkit.recipe.fields import find_fields
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe, parse_recipe
from peftkit.recipe.methods import ADVICE, METHODS, Method, usual_rate
from peftkit.recipe.references import BUILTIN_PREFIX
from peftkit.recipe.schema import Format, Source
from peftkit.storage import write_text
from peftkit.training.survey import SurveyedBase, SurveyedData, survey_base, survey_data

__all__ = [
    "BATCH", "Choice", "Reasoned", "choose_method", "draft_text", "in_words", "length_for", "recipe_name",
    "rows_that_fit", "write_new_recipe",
]  # fmt: skip

BATCH: Final = 16
"""Sequences in one optimizer step: of the 16 and 32 in Devlin et al. 2019, appendix A.3, what more machines hold."""

_ROOM = 0.8
"""Share of the memory for weights and what belongs to them; the rest is for activations and the system."""

_USABLE = 0.9
"""Share of the memory that one process may fill."""

_GB = 10**9
_FAIR: Final = "lora"  # a fair guess for a base whose size is not known
_WIDTH = 120
_PLAIN = re.compile(r"[A-Za-z./][\w./-]*(?::[\w-]+)*")
_NOT_TEXT = re.compile(r"true|false|null", re.IGNORECASE)


class _Way(NamedTuple):
    """How weights are held, by a method and others that hold the base alike, and the bytes of each parameter."""

    method: Method
    bytes_each: float
    what: str
    dtype: Literal["auto", "bfloat16"] = "auto"


_WAYS: Final = (
    _Way("full", 16, "a float each for weight, gradient and AdamW's two"),
    _Way("lora", 4, "frozen weights in float32"),
    _Way("lora", 2, "frozen weights in bfloat16", "bfloat16"),
    _Way("qlora", 0.6, "frozen weights in 4 bits, their scales and the embeddings"),
)
"""From the one that learns the most to the one that needs the least; adapters add a hundredth and are not counted."""


@dataclass(frozen=True)
class Choice:
    """A method with the dtype of the base, and why."""

    method: Method
    dtype: Literal["auto", "bfloat16"]
    why: str
    held_bytes: float | None
    """What weights, gradients and optimizer take; None where the base's size is not known."""

    fits: bool = True


def choose_method(parameters: int | None, memory_bytes: float, *, half: bool, wanted: Method | None = None) -> Choice:
    """The first way to train that the memory has room for; the last where it has for none.

    The memory is that of the GPU, or of a machine without one. `half` is whether it computes in bfloat16, so that a
    base may be held in it, and `wanted` the method, if it is settled. For a base of unknown size, LoRA is a fair guess.
    """
    ways = [way for way in _WAYS if (half or way.dtype == "auto") and (wanted is None or _alike(way.method, wanted))]
    room = memory_bytes * _ROOM
    if parameters is None:
        way = next((way for way in ways if way.method == _FAIR), ways[0])
        held = f"{memory_bytes / _GB:.3g} GB hold up to {room / way.bytes_each / _GB:.2g} billion parameters so"
        return Choice(wanted or way.method, way.dtype, f"the base's size is not known here; {held}: {way.what}", None)
    way = next((way for way in ways if parameters * way.bytes_each <= room), ways[-1])
    held_bytes = parameters * way.bytes_each
    fits = held_bytes <= room
    verdict = "fit into" if fits else "do not fit into"
    needed = f"{in_words(parameters)} parameters at {way.bytes_each:g} bytes"
    why = f"{needed} ({way.what}) {verdict} {_ROOM:.0%} of {memory_bytes / _GB:.3g} GB"
    return Choice(wanted or way.method, way.dtype, why, held_bytes, fits)


def _alike(method: Method, other: Method) -> bool:
    """Whether two methods hold the base's weights alike: trained, frozen, or quantised."""
    one, two = METHODS[method], METHODS[other]
    return (one.section is None, one.quantizes) == (two.section is None, two.quantizes)


class Reasoned(NamedTuple):
    """A value, and why it was chosen."""

    value: str | float | bool
    why: str | None = None


Draft: TypeAlias = Mapping[str, "Reasoned | Draft"]


def write_new_recipe(
    data: str,
    base: str,
    destination: Path,
    hardware: Hardware,
    *,
    memory_bytes: float | None = None,
    format: Format = "auto",  # noqa: A002  the name of the field
    method: Method | None = None,
) -> None:
    """Write a recipe that passes every check of a recipe; `destination` must be free.

    `data` is a file, or a data set as `NAME` or `NAME:CONFIGURATION`; `base` a folder, a builtin base, or a model of
    the hub. `memory_bytes` are those of the machine that will train, if it is not this one. Without a method, it is
    chosen by size and memory.

    Raises:
        InputError: the data or the base cannot be used.
    """
    found = survey_base(base)
    rows = survey_data(data, format, found.tokenizer)
    memory = memory_bytes or hardware.memory_bytes
    elsewhere = memory_bytes is not None
    precision: ChosenPrecision = "bf16" if elsewhere else choose_precision("auto", hardware).choice
    choice = choose_method(found.parameters, memory, half=elsewhere or hardware.has_bf16, wanted=method)
    if not choice.fits:
        console.warning(f"{choice.method}: {choice.why}.")
    length, why_length = _length(found, rows)
    row_bytes = None  # of the backward pass; only of a base that is at hand
    if found.located is not None:
        structure = found.located.structure(found.located.config())
        with suppress(UncountedError):
            row_bytes = activation_bytes(structure, 1, length, precision, hardware)
    folder = destination.resolve().parent
    draft: Draft = {
        "name": Reasoned(recipe_name(destination.stem)),
        "method": Reasoned(choice.method, choice.why),
        "base": _base(found, choice, folder),
        **_adapter(choice.method),
        "data": {**_data(rows, folder), "max_length": Reasoned(length, why_length)},
        "training": {
            **_training(found, choice.method),
            **_batch(choice, memory, row_bytes),
            "eval_strategy": (
                Reasoned("epoch", "the validation loss after each epoch shows when there are too many")
                if rows.validation or rows.share
                else Reasoned("no", "too few documents differ to hold some out")
            ),
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
    """The section of the adapter; nothing where the weights themselves are trained."""
    section, found = METHODS[method].section, {}
    for name, value in METHODS[method].drafted.items():
        path = f"{section}.{name}"
        found[name] = Reasoned(_default(path) if value is None else value, _usual(path, method))
    return {} if section is None else {section: found}


def _data(data: SurveyedData, folder: Path) -> Draft:
    found: dict[str, Reasoned | Draft] = {"train": _source(data.train, folder)}
    if data.validation:
        found["validation"] = _source(data.validation, folder)
    elif data.share:
        held = "held out of the training data, equal documents together"
        found["validation"] = Reasoned(data.share, held if data.train.path else f"{held}; or name a split's source")
    why = data.why or "recognised from the columns, once they are read"
    found["format"] = Reasoned(data.format, why)
    return found


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
        return length, "longer texts continue in a further sequence, and short ones are packed: nothing is lost"
    if data.longest is None:
        return length, "`peftkit data` reports how long the documents are"
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


def _batch(choice: Choice, memory: float, row_bytes: int | None) -> dict[str, Reasoned]:
    """The rows of one pass by the memory that the weights leave, and passes up to a whole batch."""
    rows, why = 4, "what a layer needs is not known here; `peftkit train --auto-batch` halves it where it must"
    checkpointing = False
    if row_bytes is not None and choice.held_bytes is not None:
        fitting = rows_that_fit(row_bytes, memory, choice.held_bytes)
        rows, checkpointing = max(fitting, 1), fitting == 0
        why = "about what fits next to the weights, and at most a batch"
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
    value: float | str = find_fields(path)[0].default
    return value


def _relative(path: Path, folder: Path) -> str:
    """A path relative to the recipe's folder, so that both may move together."""
    found = os.path.relpath(path, folder)
    return found if found.startswith(".") or path.is_file() else f"./{found}"


def rows_that_fit(row_bytes: float, memory_bytes: float, held_bytes: float) -> int:
    """Rows of one forward pass that fit, as a power of two up to a whole batch; 0 where not even one does.

    One row keeps `row_bytes` for the backward pass; weights, gradients and optimizer take `held_bytes` of the memory.
    """
    fitting = (memory_bytes * _USABLE - held_bytes) // row_bytes
    return next((rows for rows in (BATCH >> halved for halved in range(BATCH.bit_length())) if rows <= fitting), 0)


def in_words(parameters: int) -> str:
    """A number of parameters for people: 124 million, 7 billion."""
    if parameters >= _GB:
        return f"{parameters / _GB:.3g} billion"
    return f"{parameters / 10**6:.3g} million"


def length_for(longest: int, positions: int | None) -> int:
    """A `max_length` that documents fit into: the next multiple of 32, at most what the base can see."""
    rounded = -(-longest // 32) * 32
    return rounded if positions is None else min(rounded, positions)


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
