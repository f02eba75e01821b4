"""Which documents share a sequence."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from peftkit.data.documents import Ints

__all__ = ["WINDOW", "pack"]

WINDOW = 16_384
"""Documents that are packed at once: enough that waste is below one percent, few enough to do while reading on."""


def pack(lengths: Ints, max_length: int, window: int = WINDOW) -> Iterator[list[int]]:
    """Put documents of the given lengths into sequences of at most `max_length` tokens.

    Best-fit decreasing: of each window, the longest first, each into the fullest sequence that has room (Johnson 1974:
    at most 11/9 of the fewest sequences). Every index comes exactly once; the sequences of a window are in the order of
    their first document, and so are the documents in them. A document longer than `max_length` raises ValueError.
    """
    for start in range(0, len(lengths), window):
        for sequence in _best_fit(lengths[start : start + window].tolist(), max_length):
            yield [start + index for index in sequence]


def _best_fit(lengths: list[int], max_length: int) -> list[list[int]]:
    open_by_room: dict[int, list[list[int]]] = {}
    rooms: list[int] = []  # the rooms that some sequence has, sorted: never more of them than max_length
    sequences: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if length > max_length:
            raise ValueError(f"a document has {length} tokens, more than {max_length}")
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            sequence = open_by_room[room].pop()
            if not open_by_room[room]:
                del open_by_room[room], rooms[place]
        else:
            room, sequence = max_length, []
            sequences.append(sequence)
        sequence.append(index)
        left = room - length
        if left:
            if left not in open_by_room:
                open_by_room[left] = []
                insort(rooms, left)
            open_by_room[left].append(sequence)
    return sorted(sorted(sequence) for sequence in sequences)
