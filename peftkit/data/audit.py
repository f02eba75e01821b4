"""What a model will see of the data and which tokens are in the loss, counted, shown and checked before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from os.path import commonprefix
from typing import Any

import numpy as np
import numpy.typing as npt

from peftkit.data.documents import Ints
from peftkit.data.prepare import Counts, Prepared, RunData
from peftkit.errors import FieldError
from peftkit.recipe.schema import Data

__all__ = ["Audit", "Leak", "Origin", "Shown", "SourceAudit", "Token", "audit", "check", "leak_of"]

_LEAK_OF_TEXT = 0.1  # short lines repeat: a twentieth of the lines of a play are in the rest of it too


@dataclass(frozen=True)
class Origin:
    """One source of a data set."""

    name: str
    format: str
    why: str
    """How the format was recognised."""

    rows: int
    documents: int
    """In the data set, repeated ones each time."""

    first_bad: list[str]
    """Place and reason of the first rows that were left out."""

    ignored: dict[str, int]
    """Columns that are not used, with the rows that have a value there."""

    notes: dict[str, int]
    """What else is to be known of documents, with how many these are."""

    end_tokens: list[str]
    """What ends a document or an answer, and generation."""


@dataclass(frozen=True)
class SourceAudit:
    """The training or the validation data, counted."""

    sources: list[Origin]
    held_out: float | None
    """The share of the sources' documents that validation data is, if it is one."""

    counts: Counts
    packed: bool
    length_quantiles: dict[str, int]
    """Tokens of a whole document, its end token included, before anything is cut: median, 90%, 99% and longest."""

    split: float
    """Share of the documents that continue in a further sequence."""

    cut: float
    """Share of the documents that lose tokens."""

    filled: float
    """Share of the slots of all batches, in order, that hold a real token."""

    taught: float
    """Share of the tokens that carry a label."""

    ends_taught: float
    """Share of the documents whose end token is in the loss: from the others, the model does not learn to stop."""

    duplicates: int
    """Documents that have come before in the same data."""


@dataclass(frozen=True)
class Leak:
    """Validation documents that are trained on."""

    documents: int
    share: float
    """Of the validation tokens that are in the loss."""


@dataclass(frozen=True)
class Token:
    """One token of a document."""

    id: int
    token: str
    """As the vocabulary has it."""

    text: str
    """What it adds to the decoded text: nothing, where a character has further tokens."""

    in_loss: bool


@dataclass(frozen=True)
class Shown:
    """One document as it is decoded, up to `max_length` tokens."""

    runs: list[tuple[bool, str]]
    """Its text in parts, each with whether its tokens are in the loss."""

    tokens: list[Token]
    """Its tokens, if they were asked for."""

    more: int
    """Tokens of the document beyond those that are shown."""


@dataclass(frozen=True)
class Audit:
    """Training and validation data, and what is in both."""

    train: SourceAudit
    validation: SourceAudit | None
    leak: Leak
    shown: list[Shown]


def audit(run_data: RunData, tokenizer: Any, batch_size: int, *, show: int = 2, tokens: bool = False) -> Audit:
    """Count prepared data and take the first `show` training documents to look at, with `tokens` each token too."""
    return Audit(
        train=_count(run_data.train, tokenizer, batch_size),
        validation=_count(run_data.validation, tokenizer, batch_size) if run_data.validation else None,
        leak=leak_of(run_data),
        shown=list(_shown(run_data.train, tokenizer, show, tokens)),
    )


def leak_of(run_data: RunData) -> Leak:
    """What of the validation data is trained on; of a stream, only its first window is known."""
    if run_data.validation is None:
        return Leak(0, 0.0)
    seen = np.isin(_of(run_data.validation, "digests"), _of(run_data.train, "digests"))
    labels = _of(run_data.validation, "label_tokens")
    return Leak(int(seen.sum()), float(labels[seen].sum() / labels.sum()))


def check(run_data: RunData, data: Data) -> list[str]:
    """See that the data can be trained on and measured on; give what may surprise.

    Raises:
        FieldError: validation rows are trained on, or a chat template never ends a turn.
    """
    warnings: list[str] = []
    train = run_data.train
    chats = [part.corpus.documents for part in train.parts if part.corpus.form.has_chat_template]
    if chats and not any(documents.ends.any() for documents in chats):
        raise FieldError(
            "data.template",
            "the chat template writes no end token after an answer, so a model would never learn to stop.",
            remedy="Write {{ eos_token }} after the assistant's content.",
        )
    if not train.counts.ends:
        warnings.append("no training document has its end token in the loss, so the model will not learn to stop.")
    leak = leak_of(run_data)
    if run_data.validation and leak.documents:
        largest = data.max_leaked
        if largest is None:
            largest = _LEAK_OF_TEXT if run_data.validation.is_plain_text else 0.0
        what = f"{leak.documents:,} validation documents, {leak.share:.1%} of the tokens, are trained on too"
        if leak.share > largest:
            raise FieldError(
                "data.validation",
                f"{what}: what is measured on them says nothing about new text.",
                remedy="Take them out, or raise data.max_leaked.",
            )
        warnings.append(f"{what}.")
    return warnings


def _of(prepared: Prepared, column: str) -> npt.NDArray[Any]:
    """A column of all documents of a data set."""
    return np.concatenate([getattr(part.corpus.documents, column)[part.chosen] for part in prepared.parts])


def _count(prepared: Prepared, tokenizer: Any, batch_size: int) -> SourceAudit:
    counts = prepared.counts
    lengths, digests = _of(prepared, "lengths"), _of(prepared, "digests")
    median, most, nearly_all = (int(value) for value in np.quantile(lengths, (0.5, 0.9, 0.99), method="lower"))
    return SourceAudit(
        sources=[
            Origin(
                part.corpus.name,
                part.corpus.reading.format,
                part.corpus.reading.why,
                part.corpus.reading.rows,
                len(part.chosen),
                part.corpus.reading.first_bad,
                part.corpus.reading.ignored,
                part.corpus.reading.notes,
                tokenizer.convert_ids_to_tokens(part.corpus.end_tokens),
            )
            for part in prepared.parts
        ],
        held_out=prepared.identity.get("held_out"),
        counts=counts,
        packed=prepared.packed,
        length_quantiles={"50%": median, "90%": most, "99%": nearly_all, "longest": int(lengths.max())},
        split=counts.split_documents / counts.documents,
        cut=counts.cut_documents / counts.documents,
        filled=counts.tokens / _slots(prepared.sequences.lengths, batch_size),
        taught=counts.label_tokens / counts.tokens,
        ends_taught=counts.ends / counts.documents,
        duplicates=len(digests) - len(np.unique(digests)),
    )


def _slots(lengths: Ints, batch_size: int) -> int:
    """Slots of all batches, each as wide as its longest row."""
    starts = np.arange(0, len(lengths), batch_size)
    rows = np.minimum(batch_size, len(lengths) - starts)
    return int((np.maximum.reduceat(lengths, starts) * rows).sum())


def _shown(prepared: Prepared, tokenizer: Any, show: int, tokens: bool) -> Iterator[Shown]:
    for part in prepared.parts:
        documents = part.corpus.documents
        for number in part.chosen[:show]:
            start, length = int(documents.offsets[number]), int(documents.lengths[number])
            stop = start + min(length, prepared.max_length)
            ids, in_loss = documents.input_ids[start:stop], documents.taught[start:stop]
            listed = _tokens(ids, in_loss, tokenizer) if tokens else []
            yield Shown(_runs(ids, in_loss, tokenizer), listed, length - len(ids))
        show -= len(part.chosen[:show])


def _runs(ids: npt.NDArray[np.int32], in_loss: npt.NDArray[np.bool_], tokenizer: Any) -> list[tuple[bool, str]]:
    if len(ids) > 1 and in_loss[1]:
        in_loss = np.concatenate([in_loss[1:2], in_loss[1:]])  # the first token never has a label
    turns = [0, *(np.flatnonzero(np.diff(in_loss)) + 1).tolist(), len(ids)]
    texts = _decoded(ids, turns, tokenizer)
    return [(bool(in_loss[begin]), text) for begin, text in zip(turns, texts, strict=False)]


def _tokens(ids: npt.NDArray[np.int32], in_loss: npt.NDArray[np.bool_], tokenizer: Any) -> list[Token]:
    texts = _decoded(ids, range(len(ids) + 1), tokenizer)
    columns = zip(ids.tolist(), tokenizer.convert_ids_to_tokens(ids), texts, in_loss.tolist(), strict=True)
    return [Token(*column) for column in columns]


def _decoded(ids: npt.NDArray[np.int32], edges: Sequence[int], tokenizer: Any) -> list[str]:
    """The parts of a document's text between edges, counted in tokens.

    Decoded alone, a part would lose its first space, or a character whose bytes are in tokens on both sides of an edge.
    """
    text = tokenizer.decode(ids)
    prefixes = (tokenizer.decode(ids[:edge]) for edge in edges[:-1])
    places = [len(commonprefix([prefix, text])) for prefix in prefixes]  # noqa: RUF071  # of texts, not of paths
    return [text[begin:stop] for begin, stop in pairwise(accumulate([*places, len(text)], max))]
