"""What people and programs read: results on stdout, everything else on stderr.

Results are printed as text, as a table, or as one JSON document. Messages, warnings and progress go to stderr, so
that `peftkit … --json | jq` always works.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["error", "info", "print_json", "print_marked", "print_table", "print_text", "stderr", "stdout", "warning"]

stdout = Console(highlight=False, soft_wrap=True)
stderr = Console(stderr=True, highlight=False)


def info(message: str) -> None:
    """Tell what is going on."""
    stderr.print(escape(message), soft_wrap=True)


def warning(message: str) -> None:
    """Tell what may surprise, without stopping."""
    stderr.print(f"[yellow]warning:[/yellow] {escape(message)}", soft_wrap=True)


def error(message: str) -> None:
    """Tell what stopped the command, on one line that a program can find."""
    stderr.print(f"[bold red]error:[/bold red] {escape(message)}", soft_wrap=True)


def print_text(text: str) -> None:
    """Print a result as it is, without wrapping or markup."""
    stdout.print(text, markup=False)


def print_marked(plain: str, marked: str) -> None:
    """Print a text of which the second part is marked, in colour and, for who sees none, by brackets."""
    stdout.print(f"[dim]{escape(plain)}[/dim][green]⟦{escape(marked)}⟧[/green]")


def print_json(value: Any) -> None:
    """Print a result as one JSON document."""
    stdout.print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False), markup=False)


def print_table(
    title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: bool = False
) -> None:
    """Print a result as a table; with `numeric`, every column but the first is set flush right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if numeric and index else "left", header_style="bold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    stdout.print(table, soft_wrap=False)
