"""What a run does beside training, put together by whoever starts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from peftkit.errors import MemoryRunError
from peftkit.runs.folder import RunFolder
from peftkit.training.checkpoint import Progress
from peftkit.training.processes import Processes
from peftkit.training.signals import StopRequest

__all__ = ["Conduct"]


@dataclass(frozen=True)
class Conduct:
    """What a run does beside training: where it saves, when it stops, and what it makes of numbers that are none."""

    folder: RunFolder
    progress: Progress
    keep: int | None
    """Checkpoints to keep, beside the best one."""

    stop: StopRequest
    on_nonfinite: Literal["stop", "skip"]
    places: Callable[[list[int]], list[str]]
    """File and line of what is in some rows of the training data, by their numbers."""

    check_inputs: Callable[[], None]
    """Raises RunError where a file that the run is made of has changed."""

    warn: Callable[[str], None]
    """Tells what may surprise, and writes it down."""

    advise: Callable[[Any, dict[str, Any] | None], MemoryRunError]
    """What to report when a pass over these inputs did not fit into memory or, without them, an optimizer step."""

    processes: Processes
    """Those that train together."""

    adopt: bool = False
    """Whether hyperparameters are the recipe's rather than the checkpoint's, when a run is gone on with."""
