"""The data of a recipe as sequences that are ready to train on, with a count of what became of its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from peftkit.data.corpus import Part, load_corpus, writing_of
from peftkit.data.documents import read_row
from peftkit.data.formats.format import RowError
from peftkit.data.sequences import Fitted, Sequences, arrange, packs
from peftkit.data.sources import layout_of, open_rows
from peftkit.data.stream import Stream
from peftkit.errors import FieldError
from peftkit.recipe.schema import Data

__all__ = ["Counts", "Prepared", "RunData", "count_words", "hold_out", "mix", "prepare", "prepare_validation", "texts"]


@dataclass(frozen=True)
class Counts:
    """What became of the rows, documents and tokens of a data set; of a stream, of its first window."""

    empty_rows: int
    """Left out: texts of nothing but spaces."""

    bad_rows: int
    """Left out by `on_bad_rows: skip`."""

    documents: int
    untaught_documents: int
    """Left out: none of the tokens within `max_length` is in the loss."""

    split_documents: int
    """Longer than `max_length`, and continued in a further sequence."""

    cut_documents: int
    cut_tokens: int
    """Lost by `truncation: cut`."""

    sequences: int
    tokens: int
    label_tokens: int
    """Tokens in the loss."""

    ends: int
    """Documents whose end token is in the loss: from the others, a model does not learn to stop."""


@dataclass(frozen=True)
class Prepared:
    """A data set and where it comes from."""

    dataset: Sequences | Stream
    sequences: Sequences
    """The same as the data set; of a stream, the first window."""

    parts: list[Part]
    counts: Counts
    packed: bool
    max_length: int
    identity: dict[str, Any]

    @property
    def length(self) -> int | None:
        """Sequences of an epoch; None for a stream, of which nobody knows."""
        return None if isinstance(self.dataset, Stream) else len(self.dataset)

    @property
    def formats(self) -> list[str]:
        """The formats of the sources, each once."""
        return list(dict.fromkeys(part.corpus.reading.format for part in self.parts))

    @property
    def is_plain_text(self) -> bool:
        """Whether all of it is running text."""
        return all(part.corpus.form.is_plain_text for part in self.parts)

    @property
    def has_prompts(self) -> bool:
        """Whether all documents have a prompt and a completion."""
        return all(part.corpus.form.has_prompt for part in self.parts)

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end what is learnt, at which generation is to stop."""
        return list(dict.fromkeys(token for part in self.parts for token in part.corpus.end_tokens))

    @property
    def time(self) -> datetime | None:
        """What a chat template has written as the time; None if none writes it."""
        return next((part.corpus.time for part in self.parts if part.corpus.time), None)

    def places(self, numbers: Iterable[int]) -> list[str]:
        """File and line of every document in some sequences of the data set."""
        found = (pair for number in numbers for pair in self.sequences.documents_in(number))
        return [self.parts[source].corpus.place_of(document) for source, document in dict.fromkeys(found)]

    def summary(self) -> str:
        """One line for a person."""
        counts = self.counts
        line = "a stream, which begins with " if isinstance(self.dataset, Stream) else ""
        line += (
            f"{counts.documents:,} documents, {counts.sequences:,} sequences, {counts.tokens:,} tokens, "
            f"{counts.label_tokens / counts.tokens:.0%} of them in the loss"
        )
        if self.packed:
            line += f", packed to {counts.tokens / (counts.sequences * self.max_length):.0%} full"
        if counts.cut_documents:
            line += f", {counts.cut_documents:,} documents cut ({counts.cut_tokens:,} tokens lost)"
        if counts.untaught_documents:
            line += f", {counts.untaught_documents:,} left out as no token within max_length is in the loss"
        if counts.bad_rows:
            line += f", {counts.bad_rows:,} bad rows skipped"
        return line

    def record(self) -> dict[str, Any]:
        """What a manifest says about the data."""
        counts = self.dataset.record() if isinstance(self.dataset, Stream) else asdict(self.counts)
        return {**self.identity, "formats": self.formats, **counts, "packed": self.packed}


@dataclass(frozen=True)
class RunData:
    """The two data sets of a run."""

    train: Prepared
    validation: Prepared | None


def prepare(data: Data, tokenizer: Any) -> RunData:
    """The training data and, where the recipe has it, the validation data.

    Raises:
        InputError: they cannot be read, or teach nothing.
    """
    if data.streaming:
        return RunData(_streamed(data, tokenizer), prepare_validation(data, tokenizer))
    parts, held_out = _training_parts(data, tokenizer)
    train = _prepared(mix(parts, [source.weight for source in data.train_sources], data.seed), data, "data.train")
    return RunData(train, _held_out(held_out, data) if held_out else prepare_validation(data, tokenizer))


def prepare_validation(data: Data, tokenizer: Any) -> Prepared | None:
    """The validation data alone, or None where a recipe has none.

    Raises:
        InputError: it cannot be read, or nothing in it has a label to measure on.
    """
    if isinstance(data.validation, float):
        return _held_out(_training_parts(data, tokenizer)[1], data)
    sources = data.validation_sources
    parts = [Part.whole(load_corpus(source, data, tokenizer, "data.validation")) for source in sources]
    weights = [source.weight for source in sources]
    return _prepared(mix(parts, weights, data.seed), data, "data.validation") if parts else None


def texts(data: Data) -> Iterator[str]:
    """Every text of the training rows, to train a tokenizer on.

    Raises:
        FieldError: the rows are token ids, of which there is no text.
    """
    for source in data.train_sources:
        own = data.of(source)
        rows = open_rows(source, own, "data.train", streaming=data.streaming)
        layout, _ = layout_of(rows, own, "data.train")
        for row in rows:
            try:
                content = read_row(row, layout, writing_of(own))
            except RowError:
                continue  # it is reported when the rows are tokenised
            if content is None:
                continue
            found = layout.form.texts(content)
            if not found:
                raise FieldError("data.train", "token ids have no text to train a tokenizer on.", remedy="Use text.")
            yield from found


def count_words(prepared: Prepared, tokenizer: Any) -> int | None:
    """The words between spaces of all documents; None where these are no plain text."""
    if not prepared.is_plain_text:
        return None
    return sum(
        len(tokenizer.decode(part.corpus.documents.tokens_of(int(number)), skip_special_tokens=True).split())
        for part in prepared.parts
        for number in part.chosen
    )


def _training_parts(data: Data, tokenizer: Any) -> tuple[list[Part], list[Part]]:
    """What is trained on, before it is mixed, and what is held out of it."""
    parts = [Part.whole(load_corpus(source, data, tokenizer, "data.train")) for source in data.train_sources]
    return hold_out(parts, data.validation, data.seed) if isinstance(data.validation, float) else (parts, [])


def _held_out(parts: Sequence[Part], data: Data) -> Prepared:
    prepared = _prepared(parts, data, "data.validation")
    counts = replace(prepared.counts, empty_rows=0, bad_rows=0)  # they are reported with the rows that they are from
    return replace(
        prepared, counts=counts, identity={**prepared.identity, "held_out": data.validation, "seed": data.seed}
    )


def _streamed(data: Data, tokenizer: Any) -> Prepared:
    stream = Stream(data, tokenizer)
    first = next(stream.windows(), None)
    if first is None:
        raise FieldError("data.train", "the stream has no documents.", remedy="Check what it is made of.")
    prepared = _prepared([Part.whole(first)], data, "data.train", packed=stream.packed)
    return replace(prepared, dataset=stream, identity=_identity(stream.identities()))


def _prepared(parts: Sequence[Part], data: Data, field: str, *, packed: bool | None = None) -> Prepared:
    if packed is None:
        packed = packs(data, {part.corpus.reading.format for part in parts})
    sequences, fitted = arrange(parts, data, packed=packed)
    if not fitted.label_tokens:
        raise _teaches_nothing(parts, fitted, data, field)
    readings = [part.corpus.reading for part in parts]
    counts = Counts(
        empty_rows=sum(reading.empty for reading in readings),
        bad_rows=sum(reading.bad for reading in readings),
        documents=sum(len(part.chosen) for part in parts),
        untaught_documents=fitted.untaught_documents,
        split_documents=fitted.split_documents,
        cut_documents=fitted.cut_documents,
        cut_tokens=fitted.cut_tokens,
        sequences=len(sequences),
        tokens=int(sequences.lengths.sum()),
        label_tokens=fitted.label_tokens,
        ends=fitted.ends,
    )
    identity = _identity([part.corpus.identity for part in parts])
    return Prepared(sequences, sequences, list(parts), counts, packed, data.max_length, identity)


def _identity(sources: list[dict[str, Any]]) -> dict[str, Any]:
    return sources[0] if len(sources) == 1 else {"sources": sources}


def _teaches_nothing(parts: Sequence[Part], fitted: Fitted, data: Data, field: str) -> FieldError:
    documents = sum(len(part.chosen) for part in parts)
    empty = sum(part.corpus.reading.empty for part in parts)
    masked = sum(int((part.corpus.documents.label_tokens[part.chosen] == 0).sum()) for part in parts)
    return FieldError(
        field,
        f"no token would be in the loss: of {documents + empty:,} rows, {empty:,} are empty, {masked:,} have no label, "
        f"and {max(0, fitted.untaught_documents - masked):,} have none within max_length {data.max_length}.",
        remedy="Check the labels, raise data.max_length, or check format and columns.",
    )


def mix(parts: Sequence[Part], weights: Sequence[float | None], seed: int) -> list[Part]:
    """As many documents as all sources have together, in shares by their weights; without weights, every one once.

    Of a source that has more than its share, some are drawn. Those of one that has fewer come again: all of them as
    often as goes in whole, and then some.
    """
    given = [weight for weight in weights if weight is not None]
    if not given:
        return list(parts)
    total = sum(len(part.chosen) for part in parts)
    rng = np.random.default_rng(seed)
    mixed: list[Part] = []
    for part, weight in zip(parts, given, strict=True):
        wanted = max(1, round(total * weight / sum(given)))
        whole, rest = divmod(wanted, len(part.chosen)) if len(part.chosen) else (0, 0)
        drawn = np.sort(rng.choice(part.chosen, rest, replace=False))
        mixed.append(Part(part.corpus, np.concatenate([*[part.chosen] * whole, drawn])))
    return mixed


def hold_out(parts: Sequence[Part], share: float, seed: int) -> tuple[list[Part], list[Part]]:
    """The documents to train on, and a share of them all to validate on.

    Equal documents stay together, so that none is in both; the share is as near as that allows, and not above.

    Raises:
        FieldError: one of the two would have no documents.
    """
    digests = np.concatenate([part.corpus.documents.digests[part.chosen] for part in parts])
    unique, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
    wanted = max(1, round(share * len(digests)))
    order = np.random.default_rng(seed).permutation(len(unique))
    order = order[counts[order] <= wanted]
    drawn = order[: int(np.searchsorted(np.cumsum(counts[order]), wanted, side="right"))]
    held = np.isin(inverse, drawn)
    if not held.any() or held.all():
        raise FieldError(
            "data.validation",
            f"{share:g} of {len(digests):,} documents, {len(unique):,} of them different, cannot be held out.",
            remedy="Change the share, or name other data.",
        )
    train, validation, start = [], [], 0
    for part in parts:
        mask = held[start : start + len(part.chosen)]
        train.append(Part(part.corpus, part.chosen[~mask]))
        validation.append(Part(part.corpus, part.chosen[mask]))
        start += len(part.chosen)
    return train, validation
