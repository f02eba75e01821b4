"""`peftkit report`: runs or a comparison as one page for people."""

from __future__ import annotations

from pathlib import Path

import click

from peftkit import console
from peftkit.cli import options

__all__ = ["command"]


@click.command("report")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write it. Unset: report.html in the folder; of several runs, it must be given.",
)
@click.option(
    "--merged",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A model that the run's adapter was merged into: show its receipt too.",
)
@options.as_json
def command(runs: tuple[Path, ...], output: Path | None, merged: Path | None, as_json: bool) -> None:
    """Write what RUN came to as one HTML page: figures, curves, samples, what was taught, and the recipe.

    RUN is the folder of a run or of a comparison; several runs come onto one page. The page holds all that it needs:
    it loads nothing, runs no script, and can be sent, kept and printed. Prints the file's path.

    \b
    Examples:
      peftkit report runs/first
      peftkit report runs/first --merged my-model
      peftkit report runs/first runs/second --output both.html
    """
    from peftkit.report.page import write_report

    place = write_report(runs, output, merged)
    if as_json:
        console.print_json({"report": str(place), "runs": [str(run) for run in runs], "bytes": place.stat().st_size})
    else:
        console.print_text(str(place))
