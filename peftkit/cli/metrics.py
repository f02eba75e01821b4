"""`peftkit metrics`: a run's curves in the terminal."""

from __future__ import annotations

from pathlib import Path

import click

from peftkit import console
from peftkit.cli import options

__all__ = ["command"]


@click.command("metrics")
@click.argument("run", type=click.Path(path_type=Path))
@options.as_json
def command(run: Path, as_json: bool) -> None:
    """Draw the curves of RUN in the terminal: training and validation loss, and the learning rate.

    A run that is still at work shows what it has so far. What goes to a file or a pipe is plain ASCII.

    \b
    Examples:
      peftkit metrics runs/first
      peftkit metrics runs/first --json
    """
    from peftkit.report.content import read_metrics, read_run
    from peftkit.report.facts import EVALUATION_COLUMNS, evaluations
    from peftkit.report.terminal import draw_curves

    if as_json:
        console.print_json(read_metrics(run))
        return
    content = read_run(run)
    if not content.metrics:
        console.info(f"{run}: {content.manifest.status}, and nothing is measured yet.")
        return
    stdout = console.stdout
    drawable = stdout.is_terminal and stdout.encoding.lower().startswith("utf")
    console.print_text(draw_curves(content, stdout.width, ascii_only=not drawable))
    lines = evaluations(content)
    if lines:
        console.print_table("evaluations", EVALUATION_COLUMNS, lines, numeric=True)
