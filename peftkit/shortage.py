"""Errors that say that memory was short: which they are, what they say of it, and the error that peftkit makes of them.

A GPU, a CPU and the libraries in between each have their own. None of them says what did not fit, nor what to do about
it: whoever knows that computes within `memory_for`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from peftkit.console import size
from peftkit.errors import Batch, MemoryRunError, PeftkitError

__all__ = ["figures", "forget_frames", "is_out_of_memory", "memory_for", "says_out_of_memory"]

_TEXTS = (
    "out of memory",  # torch on CUDA, ROCm, XPU and Apple's GPUs; the CUDA driver
    "can't allocate memory",  # torch on a CPU, on Linux
    "not enough memory",  # the same on Windows
    "cannot allocate memory",  # the system, and what safetensors reports of it
    "status_alloc_failed",  # cuBLAS, cuDNN 8, cuSOLVER, cuSPARSE
    "device_allocation_failed",  # cuDNN 9
    "memoryerror",  # Python, where a process has printed the name alone
)
_AMOUNT = r"([\d.]+) ?(bytes|[kmgt]i?b)"
_ASKED = re.compile(rf"tried to allocate {_AMOUNT}", re.IGNORECASE)
_CAPACITY = re.compile(rf"total capacity of {_AMOUNT} of which {_AMOUNT} is free", re.IGNORECASE)
_BYTES = {"bytes": 1} | {f"{unit}{i}b": 1024**power for power, unit in enumerate("kmgt", 1) for i in ("", "i")}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that memory was short, of a GPU or of the machine."""
    return _source(error) is not None


def says_out_of_memory(text: str) -> bool:
    """The same of an error's text, where there is no more of it."""
    return any(each in text.lower() for each in _TEXTS)


def figures(text: str) -> str:
    """What a library's message says of amounts, to go on from "does not fit into memory"; empty where it says nothing.

    Torch writes GB or GiB and means 2^30 bytes; the amounts are given in the units of every other message.
    """
    asked, capacity = _ASKED.search(text), _CAPACITY.search(text)
    if not asked:
        return ""
    amounts = [*asked.groups(), *(capacity.groups() if capacity else ())]
    pairs = zip(amounts[::2], amounts[1::2], strict=True)
    needed, *known = (size(int(float(number) * _BYTES[unit.lower()])) for number, unit in pairs)
    return f": {needed} more were needed" + (f", and {known[1]} of {known[0]} were free" if known else "")


@contextmanager
def memory_for(what: str, *, where: str, remedy: str, batch: Batch | None = None) -> Iterator[None]:
    """Say what did not fit, and what to do about it, where memory is short within the block.

    `batch` is the batch that would have to be smaller; None where no batch has a part in it.

    Raises:
        MemoryRunError: memory was short; an error that is one already stays as it is.
    """
    try:
        yield
    except MemoryRunError:
        raise
    except Exception as error:
        source = _source(error)
        if source is None:
            raise
        text = f"{what} does not fit into memory{figures(str(source))}."
        forget_frames(error)
        raise MemoryRunError(text, where=where, remedy=remedy, batch=batch) from source


def forget_frames(error: BaseException) -> None:
    """Let go of the frames of an error and of those that it came from: they hold what memory is short of."""
    for each in _chain(error):
        each.__traceback__ = None


def _source(error: BaseException) -> BaseException | None:
    """The error that says it, of those that led to this one."""
    return next((each for each in _chain(error) if _says_so(each)), None)


def _says_so(error: BaseException) -> bool:
    if isinstance(error, PeftkitError):
        return isinstance(error, MemoryRunError)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):  # torch's, which this layer is below
        return True
    return isinstance(error, Exception) and says_out_of_memory(str(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from, the newest first."""
    seen: set[int] = set()
    newest: BaseException | None = error
    while newest is not None and id(newest) not in seen:
        seen.add(id(newest))
        yield newest
        newest = newest.__cause__ or (None if newest.__suppress_context__ else newest.__context__)
