"""Texts as token ids, of which those that touch a span of the text are in the loss.

A document is tokenised as the one text that it is, so that its ids are those that any other tool gives. Spaces at the
end of a prompt are in the loss with what follows them: most tokenizers put a space and the word behind it into one
token, others not, and a prompt has to end in the same token whatever comes next. So does a token that lies across the
edge of a span. A prompt is what comes before, in training, generation and evaluation alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = ["ENDED", "OPENED", "STRADDLED", "Span", "Tokenised", "encode_spans", "prompt_ids"]

Span: TypeAlias = tuple[int, int]
"""Where a part of a text begins, and where it ends, in characters."""

STRADDLED: Final = "whose prompt ends in a space, or within a token, which is in the loss with the answer"
OPENED: Final = "that have the first token in their text, which is not given another"
ENDED: Final = "that have the end token in their text, which is not given another"


class Tokenised(NamedTuple):
    """A document as tokens."""

    ids: list[int]
    in_loss: list[bool]
    """Whether each token is in the loss."""

    notes: tuple[str, ...] = ()
    """What an audit counts of it; each reads on after "documents"."""

    def noting(self, notes: Sequence[str]) -> Tokenised:
        """The same with further notes."""
        return self._replace(notes=(*notes, *self.notes))


def encode_spans(texts: Sequence[tuple[str, Sequence[Span]]], tokenizer: Any, *, end: bool) -> list[Tokenised]:
    """The tokens of texts, each with its spans in the loss, after the first token that the tokenizer gives a text.

    Args:
        texts: each text and its spans.
        tokenizer: of the base.
        end: whether the end-of-text token follows, in the loss. A text that has either token itself gets no other.
    """
    first = _first_tokens(tokenizer)
    encoded = _offsets([text for text, _ in texts], tokenizer) if tokenizer.is_fast else _in_pieces(texts, tokenizer)
    found = []
    for (text, given), (ids, offsets) in zip(texts, encoded, strict=True):
        spans = [_with_space(text, span) for span in given]
        in_loss = _touching(offsets, spans)
        notes = [STRADDLED] if _straddled(offsets, given) or spans != list(given) else []
        if first and ids[:1] == first:
            notes += [OPENED] if end else []
        else:
            ids, in_loss = [*first, *ids], [*(False for _ in first), *in_loss]
        if end and ids[-1:] == [tokenizer.eos_token_id]:
            notes.append(ENDED)
        elif end:
            ids, in_loss = [*ids, tokenizer.eos_token_id], [*in_loss, True]
        found.append(Tokenised(ids, in_loss, tuple(notes)))
    return found


def prompt_ids(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a prompt as a document that it begins has them.

    Several new lines at its end may be other tokens before a word than at the end, so that there is one as a stand-in.
    """
    text = text.rstrip(" ")
    continued = text + "a" if text[-1:].isspace() else text
    (tokenised,) = encode_spans([(continued, [(len(text), len(continued))])], tokenizer, end=False)
    return [token for token, in_loss in zip(tokenised.ids, tokenised.in_loss, strict=True) if not in_loss]


def _first_tokens(tokenizer: Any) -> list[int]:
    """The beginning-of-text token, if the tokenizer puts one before a text."""
    ids = tokenizer("")["input_ids"]
    begins = bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return [ids[0]] if begins else []


def _with_space(text: str, span: Span) -> Span:
    """A span with the spaces before it."""
    begin, stop = span
    return (len(text[:begin].rstrip(" ")), stop) if begin < stop else span


def _touching(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token touches a span; one without characters, as a byte of a character, lies where it begins."""
    touching = []
    number = 0
    for begin, stop in offsets:
        while number < len(spans) and spans[number][1] <= begin:
            number += 1
        touching.append(number < len(spans) and max(stop, begin + 1) > spans[number][0])
    return touching


def _straddled(offsets: Sequence[Span], spans: Sequence[Span]) -> bool:
    starts = {begin for begin, _ in spans if begin}
    return any(begin < start < stop for begin, stop in offsets if stop - begin > 1 for start in starts)


def _offsets(texts: Sequence[str], tokenizer: Any) -> list[tuple[list[int], list[Span]]]:
    """The ids of each text without special tokens, and the characters that each token stands for."""
    if not texts:
        return []
    with _whole_offsets(tokenizer):
        encoding = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))


def _in_pieces(texts: Sequence[tuple[str, Sequence[Span]]], tokenizer: Any) -> list[tuple[list[int], list[Span]]]:
    """The same of a tokenizer in Python, which gives no offsets: each span and what is between them by itself."""
    found = []
    for text, spans in texts:
        edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
        pieces = [
            (edge, tokenizer.encode(text[edge[0] : edge[1]], add_special_tokens=False)) for edge in pairwise(edges)
        ]
        ids = [token for _, tokens in pieces for token in tokens]
        found.append((ids, [pair for pair, tokens in pieces for _ in tokens]))
    return found


@contextlib.contextmanager
def _whole_offsets(tokenizer: Any) -> Iterator[None]:
    """Offsets with the spaces of each token, which the last step of many byte-level tokenizers cuts off."""
    inner = tokenizer.backend_tokenizer
    kept, inner.post_processor = inner.post_processor, None
    try:
        yield
    finally:
        inner.post_processor = kept
