"""What lies around a machine's processors: its disks, and the way to the hub."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from peftkit.console import size
from peftkit.errors import RunError
from peftkit.storage import free_bytes

__all__ = ["reach_hub", "room_at"]

_PATIENCE_SECONDS = 3.0
Answer = TypeVar("Answer")


def room_at(folder: Path) -> str:
    """A folder, which may not be there yet, and how much can be written to its disk.

    Raises:
        RunError: it cannot be written to.
    """
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise RunError(f"{existing} cannot be written to", remedy="Change its rights, or use another folder.")
    return f"{folder}, {size(free_bytes(existing))} free"


def reach_hub() -> str:
    """Ask the hub for one short answer; neither token nor anything else is sent.

    Raises:
        RunError: it does not answer within three seconds, refuses, or is not to be asked.
    """
    from huggingface_hub import constants, get_session, get_token

    token = "a token is set" if get_token() else "no token is set"
    if constants.HF_HUB_OFFLINE:
        raise RunError(f"HF_HUB_OFFLINE is set; {token}", remedy="Unset it to fetch what is not in the cache.")
    address = f"{constants.ENDPOINT}/api/models?limit=1"
    begun = time.perf_counter()
    try:
        status = _within(_PATIENCE_SECONDS, lambda: get_session().get(address, timeout=_PATIENCE_SECONDS).status_code)
    except Exception as error:  # the client's errors have no base in common that it exports
        reason = str(error) or f"no answer within {_PATIENCE_SECONDS:.0f} seconds"
        raise RunError(f"{constants.ENDPOINT}: {reason}; {token}", remedy=_OFFLINE) from error
    if status >= 400:
        raise RunError(f"{constants.ENDPOINT} refuses with status {status}; {token}", remedy=_OFFLINE)
    return f"{constants.ENDPOINT} in {time.perf_counter() - begun:.1f} s; {token}"


_OFFLINE = "Local folders, builtin: and the cache work without it; HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy."


def _within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """What `ask` gives; it is left behind when the time is over, as looking up a name knows no limit of its own.

    Raises:
        TimeoutError: it took longer.
    """
    answer: Future[Answer] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001  handed on to the thread that waits
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer.result(timeout=seconds)
