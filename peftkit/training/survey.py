"""What is known of data and of a base before there is a recipe."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from peftkit import console
from peftkit.data.corpus import Part, load_corpus
from peftkit.data.prepare import hold_out
from peftkit.data.sources import BUILTIN, layout_of, open_rows
from peftkit.errors import BaseError, DataError, FieldError, InputError, RowsError, printable
from peftkit.models.attach import count_parameters
from peftkit.models.base import LocatedBase, base_at_hand
from peftkit.models.start import positions
from peftkit.recipe.references import DATA_SUFFIXES
from peftkit.recipe.schema import Base, Data, Format, Source

__all__ = ["SurveyedBase", "SurveyedData", "survey_base", "survey_data"]

_ROWS_SEEN: Final = 1000
"""Rows that are tokenised for the lengths of the documents."""

_SHARE, _SHARE_OF_FEW = 0.05, 0.1
"""Held out for validation; the second of less than a thousand rows, so that the loss does not depend on chance."""

_VALIDATION_NAMES = ("validation", "valid", "val", "dev")
_SIZE = re.compile(r"(?<![\d.a-z])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")
_REMEDY = "Check the file; where its columns have other names, set data.columns in a copy of a shipped recipe."


@dataclass(frozen=True)
class SurveyedBase:
    """What is known of a base; None for what is not.

    Its number of parameters is `known_from` its configuration or its name. `located` has its configuration, and perhaps
    no weights. `positions` are the tokens that it can see.
    """

    model: str
    parameters: int | None = None
    known_from: str | None = None
    located: LocatedBase | None = None
    positions: int | None = None
    tokenizer: Any = None


@dataclass(frozen=True)
class SurveyedData:
    """What is known of data; None for what is not.

    There may be a validation part next to the training part; `share` is to be held out without it, unless too few
    documents differ. `why` is how the format was recognised. 99% of the first documents have at most `longest` tokens.
    """

    train: Source
    validation: Source | None
    format: Format
    why: str | None = None
    longest: int | None = None
    share: float | None = None


def survey_base(model: str) -> SurveyedBase:
    """Look at a base: its configuration where it is on this machine, and its name where it is not.

    Raises:
        InputError: there is no such folder or builtin base, or it cannot be opened.
    """
    if model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise InputError("there is no such folder.", where=printable(model), remedy="Name a folder or a hub model.")
    if not model.strip():
        raise InputError("is empty.", where="--base", remedy="Name a folder or a hub model.")
    located = base_at_hand(Base(model=model))
    if located is None:
        size = _SIZE.search(model.rpartition("/")[2].lower())
        parameters = int(float(size[1]) * (10**9 if size[2] == "b" else 10**6)) if size else None
        return SurveyedBase(model, parameters, "its name" if size else None)
    config, tokenizer = located.config(), None
    with contextlib.suppress(BaseError):  # of a hub model of which only the configuration is in the cache
        tokenizer = located.tokenizer()
    parameters = count_parameters(located.structure(config))[1]
    return SurveyedBase(model, parameters, "its configuration", located, positions(config), tokenizer)


def survey_data(answer: str, wanted: Format, tokenizer: Any) -> SurveyedData:
    """Look at the first rows of a file; of a data set of the hub, `NAME` or `NAME:CONFIGURATION`, nothing is fetched.

    The format is recognised if it is `auto`. Without a tokenizer of the base, lengths stay unknown.

    Raises:
        InputError: there is no such file, or its rows cannot be used.
    """
    file = _file(answer)
    train, validation = _files(file) if file else _dataset(answer)
    if file is None and train.dataset != BUILTIN:
        return SurveyedData(train, None, wanted, share=_SHARE)
    seen = train.model_copy(update={"limit": _ROWS_SEEN})
    data = Data(train=seen, format=wanted, on_bad_rows="skip")
    try:
        rows = open_rows(train, data, "data.train").total
        share = _SHARE if rows is None or rows >= _ROWS_SEEN else _SHARE_OF_FEW
        if tokenizer is None:
            layout, why = layout_of(open_rows(seen, data, "data.train"), data, "data.train")
            return SurveyedData(train, validation, layout.form.name, why, share=None if validation else share)
        corpus = load_corpus(seen, data, tokenizer, "data.train")
    except RowsError:
        raise
    except (FieldError, DataError) as error:
        raise InputError(error.what, where=printable(answer), remedy=_REMEDY) from error
    if corpus.reading.bad:
        console.warning(f"{corpus.reading.bad:,} of the first {corpus.reading.rows:,} rows of {answer} cannot be used.")
    lengths, reading = corpus.documents.lengths, corpus.reading
    longest = int(np.quantile(lengths, 0.99, method="higher")) if len(lengths) else None
    held_out = None
    with contextlib.suppress(FieldError):  # too few documents differ
        if validation is None:
            hold_out([Part.whole(corpus)], share, data.seed)
            held_out = share
    return SurveyedData(train, validation, reading.format, reading.why, longest, held_out)


def _file(answer: str) -> Path | None:
    """The file that an answer names; None if it names a data set."""
    path = Path(answer).expanduser()
    suffixed = path.suffix.lower() in DATA_SUFFIXES
    if not path.is_file() and (suffixed or path.is_dir() or answer.startswith((".", "/", "~"))):
        what = "is a folder, not a file." if path.is_dir() else "there is no such file."
        raise InputError(what, where=printable(answer), remedy="Name a data file or a data set.")
    if path.is_file() and not suffixed:
        remedy = f"Use {', '.join(DATA_SUFFIXES)}."
        raise InputError("is of no kind that can be read.", where=printable(answer), remedy=remedy)
    if not answer.strip():
        raise InputError("is empty.", where="--data", remedy="Name a data file or a data set.")
    return path.resolve() if path.is_file() else None


def _files(train: Path) -> tuple[Source, Source | None]:
    """The file, and the one next to it that has `validation` or the like in its name where this one has `train`."""
    others = [train.with_name(train.name.replace("train", name)) for name in _VALIDATION_NAMES]
    found = next((other for other in others if other != train and other.is_file()), None)
    return Source(path=str(train)), Source(path=str(found)) if found else None


def _dataset(answer: str) -> tuple[Source, Source | None]:
    if answer.startswith(BUILTIN):
        name = answer.removeprefix(BUILTIN).lstrip(":") or "task"
        train = Source(dataset=BUILTIN, name=name, split="train")
        return train, train.model_copy(update={"split": "validation"})
    dataset, _, name = answer.partition(":")
    return Source(dataset=dataset, name=name or None, split="train"), None
