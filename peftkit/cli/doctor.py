"""`peftkit doctor`: what this machine can do."""

from __future__ import annotations

import click

from peftkit import console
from peftkit.cli import options

__all__ = ["command"]


@click.command("doctor")
@options.as_json
def command(as_json: bool) -> None:
    """Try what this machine can do."""
    from peftkit.models.base import take_quiet
    from peftkit.workflows.doctor import examine

    take_quiet()
    report = examine()
    if as_json:
        console.print_json({"hardware": report.hardware.record(), "versions": report.versions, "checks": report.checks})
    else:
        rows = [[check["name"], "yes" if check["works"] else "NO", check["detail"]] for check in report.checks]
        console.print_table(None, ["can it", "", ""], rows)
        console.print_text("")
        console.print_table(
            None, ["library", "version"], [[name, at or "missing"] for name, at in report.versions.items()]
        )
    report.raise_for_failures()
