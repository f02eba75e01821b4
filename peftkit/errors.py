"""The errors a user can act on.

    PeftkitError                 exit 1   base of the tree: what went wrong, where, what to do
    ├── InputError               exit 2   the recipe, the data or the command line is wrong
    │   ├── RecipeError          exit 2   every problem of one recipe, together
    │   ├── FieldError           exit 2   one recipe field that the machine, the base or the data cannot meet
    │   │   └── UnfetchedError   exit 2   a model or data set of the hub that is not on this machine
    │   ├── DataError            exit 2   a data file
    │   │   └── RowsError        exit 2   rows that cannot be used, the first of them each named
    │   ├── BaseError            exit 2   a base model that cannot be used as the recipe asks
    │   ├── TargetError          exit 2   a folder named on the command line is not what is needed
    │   └── ChangedError         exit 2   a run to be resumed, and what has changed since it began
    ├── RunError                 exit 1   a run that started and could not end as promised
    │   ├── MemoryRunError       exit 1   a part of the work that needs more memory than there is
    │   └── PeerError            exit N   a run that another of its processes has ended with status N
    └── Stopped                  exit 128 + N   a run that signal N ended, and that can be resumed

They are raised where the cause is known. Only the command line turns them into text and an exit status.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "BaseError", "Batch", "ChangedError", "DataError", "FieldError", "InputError", "MemoryRunError", "PeerError",
    "PeftkitError", "Problem", "RecipeError", "RowsError", "RunError", "Stopped", "TargetError", "UnfetchedError",
    "first_line", "nearest", "printable",
]  # fmt: skip


Batch = Literal["training", "evaluation"]
"""The batches of a run: of a training step, and of the evaluation of the validation data."""


class PeftkitError(Exception):
    """Something that a user can act on: what is wrong, where, and what to do about it."""

    exit_status: int = 1
    listed: Sequence[str] = ()
    """Messages that come before this one."""

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The messages to show, one for each thing that is wrong."""
        own = " ".join(part for part in (f"{self.where}:" if self.where else "", self.what, self.remedy) if part)
        return [*self.listed, own] if own else [*self.listed]


class InputError(PeftkitError):
    """The recipe, the data or the command line is wrong."""

    exit_status = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a recipe.

    `where` names the file and line, or the `--set` option, that it comes from; `field` is the dotted path.
    """

    where: str
    field: str
    what: str
    remedy: str | None = None

    def __str__(self) -> str:
        parts = (f"{self.where}:", self.field and f"{self.field}:", self.what, self.remedy)
        return " ".join(part for part in parts if part)


class RecipeError(InputError):
    """Every problem of one recipe, reported together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        self.listed = [str(problem) for problem in problems]
        super().__init__("")


class FieldError(InputError):
    """A recipe field that cannot be met, found where files and lines are not known.

    Whoever holds the recipe's file turns it into a `RecipeError` that names file and line.
    """

    def __init__(self, field: str, what: str, *, remedy: str | None = None) -> None:
        self.field = field
        super().__init__(what, where=field, remedy=remedy)

    def remedy_for(self, recipe: str, options: str = "") -> str | None:
        """What to do about it, where the recipe's file is known, and the options that belong to it."""
        del recipe, options
        return self.remedy


class UnfetchedError(FieldError):
    """A model or data set of the hub that is not on this machine, and that cannot be fetched now.

    `command` fetches it, where no recipe does.
    """

    def __init__(self, field: str, what: str, command: str) -> None:
        super().__init__(field, what, remedy=_fetching(command))

    def remedy_for(self, recipe: str, options: str = "") -> str:
        """The command that fetches all that the recipe needs."""
        return _fetching(f"peftkit fetch {shlex.quote(recipe)}{options}")


def _fetching(command: str) -> str:
    return f"Where there is a network, run `{command}`."


class DataError(InputError):
    """A data file, or a row in one, cannot be used."""


class RowsError(DataError):
    """Rows of a source cannot be used: `bad` of `total`, of which `rows` has place and reason of the first ones."""

    def __init__(self, rows: Sequence[str], bad: int, total: int, *, where: str) -> None:
        self.listed = rows
        shown = "" if len(rows) == bad else f"; the first {len(rows)} stand above"
        remedy = "Fix or remove them, or set data.on_bad_rows: skip."
        super().__init__(f"{bad:,} of {total:,} rows cannot be used{shown}.", where=where, remedy=remedy)


class BaseError(InputError):
    """A base model cannot be found, read or changed in the way the recipe asks."""


class TargetError(InputError):
    """A folder named on the command line is missing or is not what the command needs."""


class ChangedError(InputError):
    """A run cannot be resumed as it is: what it is made of has changed since it began, a line for each change."""

    def __init__(self, changes: Sequence[str], *, where: str, remedy: str) -> None:
        self.listed = self.changes = tuple(changes)
        differ = "thing differs" if len(changes) == 1 else "things differ"
        super().__init__(f"{len(changes)} {differ} from when the run began.", where=where, remedy=remedy)


class RunError(PeftkitError):
    """A run that started could not end as promised."""


class MemoryRunError(RunError):
    """A part of the work needs more memory than there is.

    Args:
        what: which part, with the figures that are known.
        where: what it belongs to.
        remedy: what would make it fit.
        batch: which batch would have to be smaller; None where no batch has a part in it.
        rows: of that batch, how many are estimated to fit; None where that is not known.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        remedy: str | None = None,
        batch: Batch | None = None,
        rows: int | None = None,
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.batch, self.rows = batch, rows
        self.moved = False
        """Whether weights have been trained since they were loaded or saved, and may be so in part."""


class PeerError(RunError):
    """Another process of the run has ended it with a status, and has reported why."""

    def __init__(self, what: str, exit_status: int) -> None:
        super().__init__(what)
        self.exit_status = exit_status

    def __str__(self) -> str:
        return self.what

    def lines(self) -> list[str]:
        """Nothing: the other process has reported it."""
        return []


class Stopped(PeftkitError):  # noqa: N818  it is no error: the run was asked to stop
    """A signal ended a run, which has said how to resume it."""

    def __init__(self, signal_number: int, what: str, *, remedy: str | None = None) -> None:
        self.signal_number = signal_number
        self.exit_status = 128 + signal_number
        super().__init__(what, remedy=remedy)


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that is most like `name`, if one is like enough to be meant."""
    import difflib  # only a name that is unknown needs it

    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return matches[0] if matches else None


def printable(name: str) -> str:
    """A name as part of a one-line message: quoted and escaped where it would not be readable otherwise."""
    return name if name and name.isprintable() else repr(name)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
