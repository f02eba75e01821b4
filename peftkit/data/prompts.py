"""What a model is given and what is wanted of it, as text, to compare what it writes with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from peftkit.data.documents import Documents
from peftkit.data.formats import FORMATS
from peftkit.data.prepare import Prepared
from peftkit.errors import FieldError
from peftkit.recipe.schema import Data

__all__ = ["Wanted", "openings", "pairs", "prompt_of", "wanted"]

_OPENING_TOKENS = 32


@dataclass(frozen=True)
class Wanted:
    """A prompt, and every completion that is right for it."""

    prompt: str
    references: list[str]


def pairs(prepared: Prepared, tokenizer: Any, limit: int | None = None) -> list[tuple[str, str]]:
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
    references: dict[str, list[str]] = {}
    for prompt, completion in pairs(prepared, tokenizer):
        references.setdefault(prompt, []).append(completion)
    return [Wanted(prompt, found) for prompt, found in references.items()]


def openings(prepared: Prepared, tokenizer: Any, count: int) -> list[tuple[str, str]]:
    """Up to `count` different prompts from all over the documents, with what follows them.

    Of plain text, the first half of a document is the prompt, and at most 32 tokens.
    """
    numbered = list(_numbered(prepared))
    step = max(1, len(numbered) // max(1, count))
    order = [*numbered[::step], *numbered]  # where prompts repeat, the next documents are asked
    found: dict[str, str] = {}
    for documents, number in order:
        if len(found) >= count:
            break
        prompt, rest = (_pair if prepared.has_prompts else _halves)(documents, number, tokenizer)
        if prompt.strip() and rest.strip():
            found.setdefault(prompt, rest)
    return list(found.items())


def prompt_of(prompt: str, data: Data, tokenizer: Any) -> str:
    """A user's prompt in the form that the model was trained on; a model of plain text sees it as it is.

    Where the sources are of several formats, that of the first is used.
    """
    data = data.of(data.train_sources[0])
    form = FORMATS.get(data.format)
    return form.prompt(prompt, data.template, tokenizer) if form else prompt


def _numbered(prepared: Prepared) -> Iterator[tuple[Documents, int]]:
    return ((part.corpus.documents, int(number)) for part in prepared.parts for number in part.chosen)


def _pair(documents: Documents, number: int, tokenizer: Any) -> tuple[str, str]:
    """The text before the last run of tokens in the loss, and the text of that run."""
    start = int(documents.offsets[number])
    stop = start + int(documents.lengths[number])
    ids, taught = documents.input_ids[start:stop], documents.taught[start:stop]
    end = int(np.flatnonzero(taught)[-1]) + 1
    begin = int(np.flatnonzero(~taught[:end])[-1]) + 1
    return tokenizer.decode(ids[:begin]), tokenizer.decode(ids[begin:end], skip_special_tokens=True)


def _halves(documents: Documents, number: int, tokenizer: Any) -> tuple[str, str]:
    """The beginning of a text, and as much again of what comes after it."""
    ids = documents.tokens_of(number)
    half = min(_OPENING_TOKENS, len(ids) // 2)
    return tokenizer.decode(ids[:half]), tokenizer.decode(ids[half : 2 * half], skip_special_tokens=True)
