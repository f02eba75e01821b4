"""What people and programs read: results on stdout, everything else on stderr.

Results are printed as text, as a table, or as one JSON document. Messages, warnings and progress go to stderr, so
that `peftkit … --json | jq` always works.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from peftkit.redaction import redact
from peftkit.tables import lay_out

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "duration",
    "error",
    "hush",
    "info",
    "print_json",
    "print_marked",
    "print_table",
    "print_text",
    "progress",
    "silenced",
    "size",
    "speak",
    "stderr",
    "stdout",
    "warning",
]

_WIDTH = 80
"""Characters of a line where there is no terminal."""


class _Results:
    """Standard output, as plain text: importing Rich takes as long as most commands that print a table."""

    def __init__(self) -> None:
        self.quiet = False

    @property
    def is_terminal(self) -> bool:
        """Whether a person sees it."""
        return sys.stdout.isatty()

    @property
    def encoding(self) -> str:
        """How characters are written."""
        return sys.stdout.encoding

    @property
    def width(self) -> int:
        """The characters that a line has room for: in the terminal that one of the streams is, or 80."""
        given = os.environ.get("COLUMNS", "")
        if given.isdecimal() and int(given):
            return int(given)
        for stream in (1, 2, 0):
            with suppress(OSError):  # it is no terminal
                return os.get_terminal_size(stream).columns or _WIDTH
        return _WIDTH

    def write(self, text: str) -> None:
        """Write a text and end the line, at once. A reader that has had enough, as `head`, is no failure."""
        if self.quiet:
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing can be written, not even at exit

    def bold(self, line: str) -> str:
        """The line as a terminal shows it bold; as it is, elsewhere."""
        plain = not line or not self.is_terminal or os.environ.get("TERM") in ("dumb", None)
        return line if plain else f"\x1b[1m{line}\x1b[0m"

    def draw(self, marked: str) -> None:
        """Write a text in Rich's markup."""
        from rich.console import Console

        Console(highlight=False, quiet=self.quiet).print(marked)


stdout = _Results()


class _Messages:
    """Standard error for as long as somebody reads it: a closed terminal costs messages, and not the run."""

    @property
    def _stream(self) -> TextIO:
        """Where messages go now, behind what Rich puts before it while it draws."""
        stream: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return stream

    def write(self, text: str) -> int:
        """Write a text, or nothing where that has become impossible."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Let what was written be seen."""
        self._attempt(lambda: self._stream.flush())

    def isatty(self) -> bool:
        """Whether a person sees it."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The number that the system knows it by."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        """How characters are written."""
        return self._stream.encoding

    def _attempt(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError:  # a terminal or a pipe that was closed, or a full disk
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


@functools.cache
def stderr() -> Console:
    """Where messages, warnings and progress go."""
    from rich.console import Console

    return Console(file=cast(IO[str], _Messages()), highlight=False)


def hush() -> None:
    """Say and print nothing from here on: another process does."""
    stdout.quiet = stderr().quiet = True


def speak() -> None:
    """Say again what goes wrong."""
    stderr().quiet = False


def info(message: str) -> None:
    """Tell what is going on."""
    _say(message)


def warning(message: str) -> None:
    """Tell what may surprise, without stopping."""
    _say(message, "[yellow]warning:[/yellow] ")


def error(message: str) -> None:
    """Tell what stopped the command, on one line that a program can find."""
    _say(message, "[bold red]error:[/bold red] ")


@contextmanager
def silenced() -> Iterator[None]:
    """Say nothing within the block, where another has said it already."""
    console = stderr()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def _say(message: str, head: str = "") -> None:
    """A terminal breaks lines between words, a file not at all; a token is shown on neither.

    Args:
        message: shown as it is.
        head: what stands before it, in Rich's markup.
    """
    stderr().print(redact(head + _plain(message)), soft_wrap=not stderr().is_terminal)


def _plain(text: str) -> str:
    """A text as it is, for Rich."""
    from rich.markup import escape

    return escape(text)


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar while something is done; call what it gives with each amount done. Nothing is drawn but on a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=stderr(), transient=True, disable=not stderr().is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda amount: bar.advance(task, amount)


def size(count: int) -> str:
    """A number of bytes for people: 67 kB, 3.8 MB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}" if count < 10 * unit else f"{count / unit:.0f} {name}"
    return f"{count} B"


def duration(seconds: float) -> str:
    """A time for people, to two parts: 4.2 s, 12 min 30 s, 3 h 20 min."""
    if seconds < 0.1:
        return "under 0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def print_text(text: str) -> None:
    """Print a result as it is, without wrapping or markup."""
    stdout.write(text)


def print_marked(parts: Sequence[tuple[bool, str]]) -> None:
    """Print a text of which some parts are marked: by brackets and, on a terminal, in colour."""
    if stdout.is_terminal:  # where a person reads it, in lines that break between words
        stdout.draw(
            "".join(f"[green]⟦{_plain(text)}⟧[/]" if mark else f"[dim]{_plain(text)}[/]" for mark, text in parts)
        )
    else:
        stdout.write("".join(f"⟦{text}⟧" if mark else text for mark, text in parts))


def print_json(value: Any) -> None:
    """Print a result as one JSON document."""
    stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(
    title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: bool = False
) -> None:
    """Print a result as a table; with `numeric`, every column but the first is set flush right.

    Where the terminal is narrow, long cells go on in a further line; nothing is cut off.
    """
    heading, *body = lay_out(columns, rows, stdout.width, numeric=numeric)
    bold = [*([title] if title is not None else []), *heading]
    stdout.write("\n".join([*map(stdout.bold, bold), *(line for lines in body for line in lines)]))
