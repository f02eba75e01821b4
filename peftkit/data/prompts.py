"""What a model is given and what is wanted of it, as text, to compare what it writes with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from peftkit.data.corpus import writing_of
from peftkit.data.documents import Documents
from peftkit.data.formats import FORMATS
from peftkit.data.formats.format import DataFormat, Writing
from peftkit.data.prepare import Prepared
from peftkit.errors import FieldError
from peftkit.recipe.schema import Data

__all__ = ["Asked", "Wanted", "end_tokens_of", "openings", "pairs", "prompt_of", "wanted"]

_OPENING_TOKENS = 32


class Asked(NamedTuple):
    """What a model is given, and what is wanted of it."""

    ids: tuple[int, ...]
    """The tokens of the prompt, as training has them."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Wanted:
    """A prompt, and every completion that is right for it."""

    ids: tuple[int, ...]
    prompt: str
    references: list[str]


def pairs(prepared: Prepared, tokenizer: Any, limit: int | None = None) -> list[Asked]:
    """What is given and what is wanted, of the first documents.

    Of a conversation, the last answer is wanted.

    Raises:
        FieldError: there is plain text among the documents, which gives nothing.
    """
    if not prepared.has_prompts:
        raise FieldError("data.format", "text has no completions to compare with.", remedy="Use completion data.")
    return [_pair(documents, number, tokenizer) for documents, number in islice(_numbered(prepared), limit)]


def wanted(prepared: Prepared, tokenizer: Any) -> list[Wanted]:
    """Each prompt once, with the completions of all documents that have it, in their order.

    Raises:
        FieldError: there is plain text among the documents, which gives nothing.
    """
    found: dict[tuple[int, ...], Wanted] = {}
    for ids, prompt, completion in pairs(prepared, tokenizer):
        found.setdefault(ids, Wanted(ids, prompt, [])).references.append(completion)
    return list(found.values())


def openings(prepared: Prepared, tokenizer: Any, count: int) -> list[Asked]:
    """Up to `count` different prompts from all over the documents, with what follows them.

    Of plain text, the first half of a document is the prompt, and at most 32 tokens.
    """
    numbered = list(_numbered(prepared))
    step = max(1, len(numbered) // max(1, count))
    order = [*numbered[::step], *numbered]  # where prompts repeat, the next documents are asked
    found: dict[tuple[int, ...], Asked] = {}
    for documents, number in order:
        if len(found) >= count:
            break
        asked = (_pair if prepared.has_prompts else _halves)(documents, number, tokenizer)
        if asked.prompt.strip() and asked.completion.strip():
            found.setdefault(asked.ids, asked)
    return list(found.values())


def prompt_of(prompt: str, data: Data, tokenizer: Any) -> str:
    """A user's prompt in the form that the model was trained on; a model of plain text sees it as it is.

    Where the sources are of several formats, that of the first is used.
    """
    form, writing = _form_of(data)
    return form.prompt(prompt, tokenizer, writing) if form else prompt


def end_tokens_of(data: Data, tokenizer: Any) -> list[int]:
    """The tokens that end what a model was trained to write on such data."""
    form, writing = _form_of(data)
    return form.end_tokens(tokenizer, writing) if form else [tokenizer.eos_token_id]


def _form_of(data: Data) -> tuple[DataFormat[Any] | None, Writing]:
    data = data.of(data.train_sources[0])
    return FORMATS.get(data.format), writing_of(data)


def _numbered(prepared: Prepared) -> Iterator[tuple[Documents, int]]:
    return ((part.corpus.documents, int(number)) for part in prepared.parts for number in part.chosen)


def _pair(documents: Documents, number: int, tokenizer: Any) -> Asked:
    """The text before the last run of tokens in the loss, and the text of that run."""
    start = int(documents.offsets[number])
    stop = start + int(documents.lengths[number])
    ids, taught = documents.input_ids[start:stop], documents.taught[start:stop]
    end = int(np.flatnonzero(taught)[-1]) + 1
    begin = int(np.flatnonzero(~taught[:end])[-1]) + 1
    return _asked(ids[:begin], ids[begin:end], tokenizer)


def _halves(documents: Documents, number: int, tokenizer: Any) -> Asked:
    """The beginning of a text, and as much again of what comes after it."""
    ids = documents.tokens_of(number)
    half = min(_OPENING_TOKENS, len(ids) // 2)
    return _asked(ids[:half], ids[half : 2 * half], tokenizer)


def _asked(given: npt.NDArray[np.int32], wanted: npt.NDArray[np.int32], tokenizer: Any) -> Asked:
    ids = tuple(given.tolist())
    return Asked(ids, tokenizer.decode(ids), tokenizer.decode(wanted, skip_special_tokens=True))
