"""Where each turn of a conversation is in what a template writes of it.

The conversation is written once more with a marker in place of what each turn says; what is around the markers is the
template's own, and is found again in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from peftkit.data.formats.spans import Span

__all__ = ["THOUGHTS_END", "Message", "places_of", "with_markers"]

Message: TypeAlias = dict[str, Any]
"""A turn as OpenAI has it: `role`, `content`, and perhaps more."""

THOUGHTS_END: Final = "</think>"
"""What stands between the thoughts and the answer in a turn that has both in its content."""


def with_markers(messages: Sequence[Message], text: str) -> tuple[list[Message], dict[int, str]]:
    """The turns with a marker for what each says, and the markers; thoughts written before an answer stay."""
    stem = "Qzwq"
    while stem in text:
        stem += "q"
    marked, markers = [], {}
    for turn, message in enumerate(messages):
        said = message.get("content")
        if isinstance(said, str) and said.strip():
            marker = f"{stem}{turn:04}z"
            kept = _thoughts_of(said) if message["role"] == "assistant" else ""
            message = {**message, "content": kept + marker}
            markers[turn] = marker
        marked.append(message)
    return marked, markers


def _thoughts_of(said: str) -> str:
    thought, end, answer = said.rpartition(THOUGHTS_END)
    return said[: len(thought) + len(end) + len(answer) - len(answer.lstrip())] if end and answer.strip() else ""


def places_of(
    text: str, skeleton: str, markers: Sequence[tuple[int, str]], messages: Sequence[Message]
) -> dict[int, Span] | None:
    """Where what each turn says is in the text; None if what is around the markers is not there in this order."""
    pieces, rest = [], skeleton
    for _, marker in markers:
        piece, found, rest = rest.partition(marker)
        if not found:
            return None  # turns are written in another order
        pieces.append(piece)
    pieces.append(rest)
    if not text.startswith(pieces[0]):
        return None
    places: dict[int, Span] = {}
    begin = len(pieces[0])
    for (turn, _), behind in zip(markers, pieces[1:], strict=True):
        is_last = turn == markers[-1][0]
        said = messages[turn]["content"]
        said = said[len(_thoughts_of(said)) :] if messages[turn]["role"] == "assistant" else said
        stop = next(
            (
                begin + len(form)
                for form in (said, said.strip(), said.lstrip(), said.rstrip())
                if text.startswith(form + behind, begin) and (not is_last or begin + len(form + behind) == len(text))
            ),
            -1,
        )
        if stop < 0 and (behind or is_last):  # written in another form, as with its lines indented
            stop = len(text) - len(behind) if is_last and text.endswith(behind) else text.find(behind, begin)
        if stop < begin:
            return None
        places[turn] = (begin, stop)
        begin = stop + len(behind)
    return places
