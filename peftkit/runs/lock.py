"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from peftkit.errors import TargetError

__all__ = ["LOCK_NAME", "is_held", "locked"]

LOCK_NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder that exists. The system lets go of the lock when the process ends, however it ends.

    The lock is the process's own (POSIX), not its children's: a worker that outlives it holds nothing.

    Raises:
        TargetError: another process holds it, or nothing can be written there.
    """
    try:
        opened = (folder / LOCK_NAME).open("a+", encoding="utf-8")
    except OSError as error:
        remedy = "Make the folder writable, or name another --output."
        raise TargetError(f"cannot be written: {error.strerror}.", where=str(folder), remedy=remedy) from error
    with opened as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise TargetError(
                f"is in use by {holder}.", where=str(folder), remedy="Wait until it ends, or name another --output."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_held(folder: Path) -> bool:
    """Whether another process is at work in a folder."""
    try:
        with (folder / LOCK_NAME).open(encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False
