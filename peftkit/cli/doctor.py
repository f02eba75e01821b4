"""`peftkit doctor`: what this machine can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options
from peftkit.cli.decisions import print_decisions

if TYPE_CHECKING:
    from peftkit.runs.requirements import Library
    from peftkit.workflows.doctor import Check, Report

__all__ = ["command"]


@click.command("doctor")
@options.as_json
def command(as_json: bool) -> None:
    """Try what this machine can do.

    Each thing that training needs is done once, on the embedded base. Then come the decisions that a recipe leaves to
    peftkit, with their reasons, and the libraries beside the versions that were tested.

    The exit status is 1 if something that peftkit needs does not work. The hub, a token and room on the disk are
    told, with what to do, and are no failure.
    """
    from peftkit.runs.requirements import check_complete, installed_libraries

    libraries = installed_libraries()
    check_complete(libraries)  # before what imports them

    from peftkit.models.base import take_quiet
    from peftkit.workflows.doctor import examine

    take_quiet()
    report = examine(libraries)
    if as_json:
        console.print_json(report.record())
    else:
        _print(report)
    report.raise_for_failures()


def _print(report: Report) -> None:
    console.print_table(None, ["can it", "", ""], [_row(check) for check in report.checks])
    console.print_text("")
    print_decisions(report.decisions)
    console.print_text("")
    console.print_table(None, ["library", "beside what was tested"], list(_library_rows(report.libraries)))


def _row(check: Check) -> list[str]:
    """A check's line; what fails and is needed stands out."""
    answer = "yes" if check.works else "NO" if check.needed else "no"
    return [check.name, answer, f"{check.detail}. {check.advice}" if check.advice else check.detail]


def _library_rows(libraries: Sequence[Library]) -> Iterator[list[str]]:
    """A line for each library that is not as tested, and one for all others."""
    for library in libraries:
        if library.state != "tested":
            told = f"{library.state}; {library.tested or 'nothing'} was tested"
            yield [f"{library.name} {library.installed}", f"{told}. {library.advice}" if library.advice else told]
    tested = [f"{library.name} {library.installed}" for library in libraries if library.state == "tested"]
    yield ["as tested", ", ".join(tested) or "none is known"]
