"""Signals that end a run: between two steps, with everything saved, or at once when they come again."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from peftkit import console
from peftkit.errors import Stopped

__all__ = ["NEVER", "SIGNALS", "StopRequest", "handling", "stopping_at_signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler's request, and a terminal that was closed."""


def _nothing() -> None:
    pass


class StopRequest:
    """Whether a signal asks a run to stop: after the step while it trains, at once otherwise."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that was received, if any."""

        self._training = False
        self._before_leaving: Callable[[], None] = _nothing
        self._process = os.getpid()

    @contextlib.contextmanager
    def between_steps(self, before_leaving: Callable[[], None] = _nothing) -> Iterator[None]:
        """Within the block, the first signal only sets `number`, which the training loop reads between steps.

        Args:
            before_leaving: called before a second one ends the process at once.
        """
        self._training, self._before_leaving = True, before_leaving
        try:
            yield
        finally:
            self._training, self._before_leaving = False, _nothing

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: request the end of the run, or end the process at a second one."""
        del frame
        if os.getpid() != self._process:  # a worker that was forked with this handler; the run ends it
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        name = signal.Signals(number).name
        if self.number is not None:
            self._before_leaving()
            console.info(f"{name} again: stopped at once; the newest checkpoint is still there.")
            os._exit(128 + number)
        self.number = number
        if not self._training:
            raise Stopped(number, f"stopped by {name}.")
        console.info(f"{name}: the step is finished and saved first. Once more, and it stops at once.")


NEVER: Final = StopRequest()
"""For a run that no signal stops."""


@contextlib.contextmanager
def stopping_at_signals() -> Iterator[StopRequest]:
    """Within the block, SIGINT, SIGTERM and SIGHUP stop the run in order."""
    request = StopRequest()
    with handling(request.handle):
        yield request


@contextlib.contextmanager
def handling(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block, SIGINT, SIGTERM and SIGHUP call `handle`.

    Only the main thread can take signals; in another one, nothing changes. A signal that was ignored when the process
    started, as `nohup` does with SIGHUP, stays ignored.
    """
    before: dict[signal.Signals, Any] = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                with contextlib.suppress(ValueError):
                    before[number] = signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
