"""Which method and which batch a machine has room for, by rules of thumb, before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from peftkit.recipe.methods import METHODS, Method

__all__ = ["BATCH", "Choice", "choose_method", "in_words", "length_for", "rows_that_fit"]

BATCH: Final = 16
"""Sequences in one optimizer step: of the 16 and 32 in Devlin et al. 2019, appendix A.3, what more machines hold."""

_ROOM = 0.8
"""Of the memory, the share for weights and what belongs to them; the rest is for activations and the system."""

_USABLE = 0.9
"""Of the memory, the share that one process may fill."""

_GB = 10**9
_FAIR: Final = "lora"  # a fair guess for a base whose size is not known


@dataclass(frozen=True)
class _Way:
    """How weights are held, and what that takes."""

    method: Method
    """The one that is chosen for it, unless another that holds the base alike is wanted."""

    bytes_each: float
    """For one parameter of the base."""

    what: str
    dtype: Literal["auto", "bfloat16"] = "auto"


_WAYS: Final = (
    _Way("full", 16, "a float each for weight, gradient and AdamW's two"),
    _Way("lora", 4, "frozen weights in float32"),
    _Way("lora", 2, "frozen weights in bfloat16", "bfloat16"),
    _Way("qlora", 0.6, "frozen weights in 4 bits, their scales and the embeddings"),
)
"""From the one that learns the most to the one that needs the least; adapters add a hundredth and are not counted."""


@dataclass(frozen=True)
class Choice:
    """A method with the number type of the base, and why."""

    method: Method
    dtype: Literal["auto", "bfloat16"]
    why: str
    held_bytes: float | None
    """What weights, gradients and optimizer take; None where the base's size is not known."""

    fits: bool = True


def choose_method(parameters: int | None, memory_bytes: float, *, half: bool, wanted: Method | None = None) -> Choice:
    """The first way to train that the memory has room for; the last where it has for none.

    Args:
        parameters: of the base; None if that is not known, where LoRA is a fair guess.
        memory_bytes: of the GPU, or of the machine where there is none.
        half: whether the machine computes in bfloat16, so that a base may be held in it.
        wanted: the method, if that is settled.
    """
    ways = [way for way in _WAYS if (half or way.dtype == "auto") and (wanted is None or _alike(way.method, wanted))]
    room = memory_bytes * _ROOM
    if parameters is None:
        way = next((way for way in ways if way.method == _FAIR), ways[0])
        held = f"{memory_bytes / _GB:.3g} GB hold up to {room / way.bytes_each / _GB:.2g} billion parameters so"
        return Choice(wanted or way.method, way.dtype, f"the base's size is not known here; {held}: {way.what}", None)
    way = next((way for way in ways if parameters * way.bytes_each <= room), ways[-1])
    held_bytes = parameters * way.bytes_each
    fits = held_bytes <= room
    verdict = "fit into" if fits else "do not fit into"
    needed = f"{in_words(parameters)} parameters at {way.bytes_each:g} bytes"
    why = f"{needed} ({way.what}) {verdict} {_ROOM:.0%} of {memory_bytes / _GB:.3g} GB"
    return Choice(wanted or way.method, way.dtype, why, held_bytes, fits)


def _alike(method: Method, other: Method) -> bool:
    """Whether two methods hold the base's weights alike: trained, frozen, or quantised."""
    one, two = METHODS[method], METHODS[other]
    return (one.section is None, one.quantizes) == (two.section is None, two.quantizes)


def rows_that_fit(row_bytes: float, memory_bytes: float, held_bytes: float) -> int:
    """Rows of one forward pass that fit, as a power of two up to a whole batch; 0 where not even one does.

    Args:
        row_bytes: what one row keeps for the backward pass.
        memory_bytes: of the GPU, or of the machine where there is none.
        held_bytes: what weights, gradients and optimizer take of it.
    """
    fitting = (memory_bytes * _USABLE - held_bytes) // row_bytes
    return next((rows for rows in (BATCH >> halved for halved in range(BATCH.bit_length())) if rows <= fitting), 0)


def in_words(parameters: int) -> str:
    """A number of parameters for people: 124 million, 7 billion."""
    if parameters >= _GB:
        return f"{parameters / _GB:.3g} billion"
    return f"{parameters / 10**6:.3g} million"


def length_for(longest: int, positions: int | None) -> int:
    """A `max_length` that documents fit into: the next multiple of 32, at most what the base can see."""
    rounded = -(-longest // 32) * 32
    return rounded if positions is None else min(rounded, positions)
