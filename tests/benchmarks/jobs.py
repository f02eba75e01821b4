"""Jobs for the tests of the workers, each of which ends in another way."""

from __future__ import annotations

import os
import signal
import sys
import time


def adds(first: int, second: int) -> int:
    """Return something, and print where a library would."""
    print("noise")
    return first + second


def raises() -> None:
    """Raise, with more than a line."""
    raise ValueError("no\nsuch thing")


def is_killed() -> None:
    """Print, and end as by a fault of the device."""
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps() -> None:
    """Take too long."""
    time.sleep(600)
