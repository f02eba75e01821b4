"""`peftkit doctor`: what this machine can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options
from peftkit.cli.tables import print_decisions

if TYPE_CHECKING:
    from peftkit.doctor import Report

__all__ = ["command"]


@click.command("doctor")
@options.as_json
def command(as_json: bool) -> None:
    """Try what this machine can do.

    Each thing that training needs is done once, on the embedded base. Then come the decisions that a recipe leaves to
    peftkit, with their reasons, and the versions of Python and of the libraries with those that were tested.

    The exit status is 1 if something that peftkit needs does not work. The hub, a token and room on the disk are
    reported, with what to do, and are no failure.
    """
    from peftkit.runs.versions import check_complete, installed_libraries

    libraries = installed_libraries()
    check_complete(libraries)  # before what imports them

    from peftkit.doctor import examine

    report = examine(libraries)
    if as_json:
        console.print_json(report.record())
    else:
        rows = []
        for check in report.checks:  # what fails and is needed stands out
            answer = "yes" if check.works else "NO" if check.needed else "no"
            rows.append([check.name, answer, f"{check.detail}. {check.advice}" if check.advice else check.detail])
        console.print_table(None, ["can it", "", ""], rows)
        console.print_text("")
        print_decisions(report.decisions)
        console.print_text("")
        console.print_table(None, ["library", "here", "tested", ""], list(_library_rows(report)))
    report.raise_for_failures()


def _library_rows(report: Report) -> Iterator[list[str]]:
    """Python and each library: its version, the lowest and newest tested ones, and how it compares with them."""
    pythons, here = report.pythons or ["unknown"], str(report.versions["python"])
    state = "tested" if here.rpartition(".")[0] in pythons else "newer" if report.pythons else "unknown"
    yield ["python", here, _range(pythons[0], pythons[-1]), state]
    for library in report.libraries:
        state = f"{library.state}. {library.advice}" if library.advice else library.state
        yield [library.name, library.installed or "", _range(library.lowest, library.tested), state]


def _range(lowest: str | None, newest: str | None) -> str:
    return f"{lowest} to {newest}" if lowest and newest and lowest != newest else newest or "unknown"
