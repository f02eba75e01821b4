"""Documents as token ids, fitted to the longest sequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from peftkit.data.formats import Example

__all__ = ["Document", "fit", "tokenise"]

_AT_ONCE = 1000  # a fast tokenizer works on a whole batch in parallel


@dataclass(frozen=True)
class Document:
    """Token ids of one document, of which the first `given` are not taught."""

    input_ids: list[int]
    given: int


def tokenise(examples: Iterable[Example], tokenizer: Any) -> Iterator[Document]:
    """Each example with the end-of-text token as its last, which is taught: the model learns to stop.

    Prompt and completion are tokenised apart, so that the prompt's tokens are those that it has alone. A first token is
    added where the tokenizer itself adds one. The first token of a document has nothing to be predicted from.
    """
    start = _first_tokens(tokenizer)
    rest = iter(examples)
    while group := list(islice(rest, _AT_ONCE)):
        completions = _ids(tokenizer, [example.completion for example in group])
        prompts = _ids(tokenizer, [example.prompt or "" for example in group])
        for prompt, completion in zip(prompts, completions, strict=True):
            given = len(start) + len(prompt)
            yield Document([*start, *prompt, *completion, tokenizer.eos_token_id], max(given, 1))


def fit(document: Document, max_length: int, truncation: Literal["split", "cut"]) -> list[Document]:
    """The document in sequences of at most `max_length`: `split` keeps every token, `cut` only the first ones."""
    ids = document.input_ids
    if len(ids) <= max_length:
        return [document]
    if truncation == "cut":
        return [Document(ids[:max_length], document.given)]
    return [
        Document(ids[start : start + max_length], document.given if start == 0 else 1)
        for start in range(0, len(ids), max_length)
    ]


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _first_tokens(tokenizer: Any) -> list[int]:
    """The beginning-of-text token, if the tokenizer puts one before a text."""
    ids = tokenizer("")["input_ids"]
    begins = bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return [ids[0]] if begins else []
