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
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Literal, TextIO, cast

from peftkit.redaction import redact

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "draws", "duration", "error", "heard_by", "hush", "info", "is_heard", "print_json", "print_marked", "print_table",
    "print_text", "progress", "silenced", "size", "speak", "stderr", "stdout", "warning",
]  # fmt: skip

_SHORT = 12
"""Cells of a table that have no more characters than this stay on one line."""


@functools.cache
def stdout() -> Console:
    """Where results go."""
    from rich.console import Console

    class Results(Console):
        def on_broken_pipe(self) -> None:
            _lose_reader()

    return Results(highlight=False, soft_wrap=True, emoji=False)


class _Messages:
    """Standard error for as long as somebody reads it: a closed terminal costs messages, and not the run."""

    @property
    def _stream(self) -> TextIO:
        """Where messages go now, behind what Rich puts before it while it draws."""
        return cast(TextIO, getattr(sys.stderr, "rich_proxied_file", sys.stderr))

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(lambda: self._stream.flush())

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
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

    return Console(file=cast(IO[str], _Messages()), highlight=False, emoji=False)


def hush() -> None:
    """Say and print nothing from here on: another process does."""
    stdout().quiet = stderr().quiet = True


def speak() -> None:
    """Say again what goes wrong."""
    stderr().quiet = False


def info(message: str) -> None:
    """Report progress."""
    _say(message)


def warning(message: str) -> None:
    """Tell what may surprise, without stopping."""
    _say(message, "[yellow]warning:[/yellow] ")


def error(message: str) -> None:
    """Tell what stopped the command, on one line that a program can find."""
    _say(message, "[bold red]error:[/bold red] ")


_listener: Callable[[str], None] | None = None
"""Gets the messages that otherwise go to stderr."""


@contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """Give every message within the block to a function, as one line without colour, and draw nothing."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def is_heard() -> bool:
    """Whether messages go to a function."""
    return _listener is not None


def draws() -> bool:
    """Whether a person watches progress on a terminal."""
    return _listener is None and stderr().is_terminal


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
    """Show a message as it is, after a head in Rich's markup.

    A terminal breaks lines between words, a file not at all; a token is shown on neither.
    """
    if _listener is not None:
        from rich.markup import render

        _listener(redact(render(head).plain + message))
        return
    stderr().print(redact(head + _plain(message)), soft_wrap=not stderr().is_terminal)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar while something is done; call what it gives with each amount done. Nothing is drawn but on a terminal."""
    from rich import progress as parts

    columns = (parts.TextColumn("[bold]{task.description}"), parts.BarColumn(bar_width=24), parts.MofNCompleteColumn())
    times = (parts.TimeElapsedColumn(), parts.TextColumn("left"), parts.TimeRemainingColumn())
    with parts.Progress(*columns, *times, console=stderr(), transient=True, disable=not draws()) as bar:
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
    if not stdout().quiet:
        try:
            print(text, flush=True)  # Rich would replace its tabs
        except BrokenPipeError:
            _lose_reader()


def _lose_reader() -> None:
    """Write to nothing from here on: who read the results, as `head`, has had enough, which is no failure."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_marked(parts: Sequence[tuple[bool, str]]) -> None:
    """Print a text of which some parts are marked: in colour and, for who sees none, by brackets."""
    marked = (f"[green]⟦{_plain(text)}⟧[/green]" if mark else f"[dim]{_plain(text)}[/dim]" for mark, text in parts)
    stdout().print("".join(marked), soft_wrap=not stdout().is_terminal)  # a person reads words, a program lines


def print_json(value: Any) -> None:
    """Print a result as one JSON document."""
    print_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(
    title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: bool = False
) -> None:
    """Print a result as a table; with `numeric`, every column but the first is set flush right.

    Where the terminal is narrow, long cells are wrapped; nothing is cut off.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if numeric and index else "left"
        short = max((len(row[index]) for row in rows), default=0) <= _SHORT
        table.add_column(column, justify=justify, header_style="bold", overflow="fold", no_wrap=short)
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    stdout().print(table, soft_wrap=False)
