"""Runs the parts of the benchmark: the most important first, each recorded whether it passes, fails or has no time."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from benchmarks.gpu.shapes import Scale

__all__ = [
    "Bench",
    "Figure",
    "JobError",
    "NotApplicableError",
    "OutOfTimeError",
    "Outcome",
    "Part",
    "Pool",
    "Row",
    "run_parts",
]

Figure = float | int | str | None
Status = Literal["passed", "failed", "not applicable", "not run"]

_TRACEBACK_LINES = 12


class JobError(Exception):
    """A job raised, crashed or did not finish; the message is one line, and `details` is where it happened."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class NotApplicableError(Exception):
    """What a part measures does not exist here; the message says why."""


class OutOfTimeError(Exception):
    """The budget of the whole benchmark is used up."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """By column; units are in the column's name. None is shown as a dash."""

    passed: bool | None = None
    """Of a check, whether it holds; None for a measurement, which cannot fail."""

    note: str = ""


@dataclass(frozen=True)
class Part:
    """One question, with the function that answers it."""

    name: str
    title: str
    rows: Callable[[Bench], Iterable[Row]]
    """Gives the rows one by one, so that those before a failure are kept."""

    seconds: float
    """The longest it may take on the first target, an H100."""

    alone: bool = False
    """Whether it needs the machine for itself, because it measures time."""


@dataclass(frozen=True)
class Outcome:
    """What became of a part."""

    part: str
    title: str
    status: Status
    rows: list[Row]
    seconds: float = 0.0
    reason: str = ""
    """One line: why it failed, does not apply or was not run."""

    traceback: str = ""


class Pool(Protocol):
    """Runs jobs, each in a process of its own."""

    def call(self, target: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """What the function named `module:function` returns; JobError if it raises, crashes or takes longer."""


@dataclass(frozen=True)
class Bench:
    """What a part needs: the machine, the sizes, a folder to work in, and processes for its jobs."""

    scale: Scale
    machine: Mapping[str, Any]
    """What `benchmarks.gpu.device:machine` found."""

    folder: Path
    pool: Pool
    deadline: float
    """On the clock of `time.monotonic`."""

    part_deadline: float = float("inf")
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held by a part while it makes files that others use too."""

    @property
    def has_gpu(self) -> bool:
        """Whether jobs compute on a CUDA device."""
        return bool(self.machine["device"] == "cuda")

    def call(self, target: str, **arguments: Any) -> Any:
        """Run a job in a process of its own, and give what it returns.

        Raises:
            JobError: it raised or crashed, or the part has used up its own budget.
            OutOfTimeError: the benchmark has used up its budget.
        """
        now = time.monotonic()
        if now >= self.deadline:
            raise OutOfTimeError
        try:
            return self.pool.call(target, arguments, min(self.deadline, self.part_deadline) - now)
        except JobError as error:
            if time.monotonic() >= self.deadline:
                raise OutOfTimeError from error
            raise


def run_parts(
    parts: Sequence[Part],
    bench: Bench,
    save: Callable[[list[Outcome]], None],
    *,
    together: int,
    report: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Run parts in order: first those that may share the machine, `together` at a time, then the others one by one.

    Args:
        parts: the most important first.
        bench: what they need.
        save: called with all outcomes after each part, so that a benchmark that is killed keeps what it has.
        together: how many parts may run at once.
        report: called with the outcome of each part that ends.
    """
    outcomes = {part.name: Outcome(part.name, part.title, "not run", [], reason="not reached") for part in parts}
    lock = threading.Lock()

    def answer(part: Part) -> None:
        outcome = _outcome(part, bench)
        with lock:
            outcomes[part.name] = outcome
            report(outcome)
            save(list(outcomes.values()))

    save(list(outcomes.values()))
    with ThreadPoolExecutor(together) as pool:
        list(pool.map(answer, [part for part in parts if not part.alone]))
    for part in parts:
        if part.alone:
            answer(part)
    return list(outcomes.values())


def _outcome(part: Part, bench: Bench) -> Outcome:
    """Run one part. Whatever it raises is its own outcome: the other parts do not depend on it."""
    start = time.monotonic()
    rows: list[Row] = []
    status: Status
    status, reason, details = "passed", "", ""
    try:
        if start >= bench.deadline:
            raise OutOfTimeError
        for row in part.rows(replace(bench, part_deadline=start + part.seconds * bench.scale.patience)):
            rows.append(row)  # noqa: PERF402  rows before an exception are kept
    except OutOfTimeError:
        status, reason = "not run", "out of time"
    except NotApplicableError as error:
        status, reason = "not applicable", str(error)
    except Exception as error:  # noqa: BLE001  it is recorded
        status, reason = "failed", _one_line(error)
        details = error.details if isinstance(error, JobError) else traceback.format_exc()
    failed = [row for row in rows if row.passed is False]
    if failed and status != "failed":
        status, reason = "failed", "; ".join(f"{row.what}: {row.note or 'outside its bound'}" for row in failed)
    shown = "\n".join(details.strip().splitlines()[-_TRACEBACK_LINES:])
    return Outcome(part.name, part.title, status, rows, round(time.monotonic() - start, 1), reason, shown)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, JobError) else f"{type(error).__name__}: {text}" if text else type(error).__name__
