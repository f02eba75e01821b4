"""What a model will see of the data and what it will be taught, counted and shown before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy as np

from peftkit.data.formats import Example, examples
from peftkit.data.prepare import Counts, Prepared, prepare_source
from peftkit.data.read import read_rows
from peftkit.data.tokenise import tokenise
from peftkit.recipe.schema import Data, Source

__all__ = ["Audit", "Shown", "SourceAudit", "audit"]


@dataclass(frozen=True)
class SourceAudit:
    """One source, counted."""

    counts: Counts
    packed: bool
    length_quantiles: dict[str, int]
    """Tokens of a whole document, its end token included, before anything is cut: median, 90%, 99% and longest."""

    filled: float
    """Share of the slots of all batches, in order, that hold a real token."""

    taught: float
    """Share of the tokens that carry a label."""

    ends_taught: float
    """Share of the documents whose end token carries a label: from the others, the model does not learn to stop."""

    duplicates: int
    """Documents that have come before in the same source."""


@dataclass(frozen=True)
class Shown:
    """The start of one document, apart in what is given and what is taught."""

    given: str
    taught: str


@dataclass(frozen=True)
class Audit:
    """Training and validation data, and what stands in both."""

    train: SourceAudit
    validation: SourceAudit | None
    leaked: int
    """Validation documents that the model is trained on."""

    shown: list[Shown]


def audit(data: Data, tokenizer: Any, batch_size: int, *, show: int = 2) -> Audit:
    """Count the data of a recipe and take the first `show` training documents to look at.

    Raises:
        InputError: it cannot be read, or nothing in it would be taught.
    """
    train, seen = _count(data.train, data, tokenizer, "data.train", batch_size)
    validation, leaked = None, 0
    if data.validation is not None:
        validation, held_out = _count(data.validation, data, tokenizer, "data.validation", batch_size)
        known = set(seen)
        leaked = sum(document in known for document in held_out)
    return Audit(train, validation, leaked, list(_shown(data, tokenizer, show)))


def _count(
    source: Source, data: Data, tokenizer: Any, field: str, batch_size: int
) -> tuple[SourceAudit, Sequence[bytes]]:
    """The counts of a source, and a digest of each of its documents."""
    documents = list(_documents(source, data, field))
    lengths = np.array([len(document.input_ids) for document in tokenise(documents, tokenizer)] or [0])
    digests = [sha256(f"{document.prompt}\0{document.completion}".encode()).digest() for document in documents]
    prepared = prepare_source(source, data, tokenizer, field)
    median, most, nearly_all = (int(value) for value in np.quantile(lengths, (0.5, 0.9, 0.99), method="lower"))
    counts = prepared.counts
    result = SourceAudit(
        counts=counts,
        packed=prepared.packed,
        length_quantiles={"50%": median, "90%": most, "99%": nearly_all, "longest": int(lengths.max())},
        filled=counts.tokens / _slots(prepared, batch_size),
        taught=counts.label_tokens / counts.tokens,
        ends_taught=_ends(prepared, tokenizer.eos_token_id) / counts.documents,
        duplicates=len(digests) - len(set(digests)),
    )
    return result, digests


def _documents(source: Source, data: Data, field: str) -> Iterator[Example]:
    rows = read_rows(source, data, field)
    return (example for example in examples(rows, data, field) if example.completion.strip())


def _slots(prepared: Prepared, batch_size: int) -> int:
    """Slots of all batches, each as wide as its longest row."""
    lengths = [len(prepared.dataset[index]["input_ids"]) for index in range(len(prepared.dataset))]
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return sum(max(batch) * len(batch) for batch in batches)


def _ends(prepared: Prepared, end: int) -> int:
    """End tokens that carry a label."""
    return sum(int((prepared.dataset[index]["labels"] == end).sum()) for index in range(len(prepared.dataset)))


def _shown(data: Data, tokenizer: Any, show: int) -> Iterator[Shown]:
    first = islice(_documents(data.train, data, "data.train"), show)
    for document in tokenise(first, tokenizer):
        ids = document.input_ids[: data.max_length]
        yield Shown(tokenizer.decode(ids[: document.given]), tokenizer.decode(ids[document.given :]))
