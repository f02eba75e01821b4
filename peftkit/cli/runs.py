"""`peftkit metrics`, `report`, `verify` and `reproduce`: what is done with the folder of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options
from peftkit.cli.tables import tell_checks, verdict_on
from peftkit.errors import RunError

if TYPE_CHECKING:
    from peftkit.experiments.reproduce import Reproduction

__all__ = ["metrics", "report", "reproduce", "verify"]


@click.command("metrics")
@click.argument("run", type=options.PATH)
@options.as_json
def metrics(run: Path, as_json: bool) -> None:
    """Draw the curves of RUN in the terminal: training and validation loss, and the learning rate.

    A run that is still at work shows what it has so far. What goes to a file or a pipe is plain ASCII.

    \b
    Examples:
      peftkit metrics runs/first
      peftkit metrics runs/first --json
    """
    from peftkit.report.content import read_metrics, read_run
    from peftkit.report.facts import EVALUATION_COLUMNS, evaluations
    from peftkit.report.plots import draw_curves

    if as_json:
        console.print_json(read_metrics(run))
        return
    content = read_run(run)
    if not content.metrics:
        console.info(f"{run}: {content.manifest.status}, and nothing is measured yet.")
        return
    stdout = console.stdout()
    drawable = stdout.is_terminal and stdout.encoding.lower().startswith("utf")
    console.print_text(draw_curves(content, stdout.width, ascii_only=not drawable))
    lines = evaluations(content)
    if lines:
        console.print_table("evaluations", EVALUATION_COLUMNS, lines, numeric=True)


@click.command("report")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=options.PATH)
@click.option(
    "--output",
    type=options.PATH,
    metavar="FILE",
    help="Where to write it. Unset: report.html in the folder; of several runs, it must be given.",
)
@click.option(
    "--merged",
    type=options.PATH,
    metavar="DIR",
    help="A model that the run's adapter was merged into: show its receipt too.",
)
@options.as_json
def report(runs: tuple[Path, ...], output: Path | None, merged: Path | None, as_json: bool) -> None:
    """Write the results of RUN as one HTML page: figures, curves, samples, training data, and the recipe.

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


@click.command("verify")
@click.argument("run", type=options.PATH)
@options.as_json
def verify(run: Path, as_json: bool) -> None:
    """Check every hash in the folder RUN: recipe, metrics, outputs and checkpoints.

    Leaves with status 2 if a file is missing or is not what the run wrote. `peftkit adapters verify` looks further, at
    what an adapter does.

    \b
    Example:
      peftkit verify runs/first
    """
    from peftkit.runs.verify import verify_run

    manifest, checks = verify_run(run)
    head = {"run": str(run), "status": manifest.status}
    tell_checks(run, head, f"{run}: {manifest.status}", checks, as_json)


@click.command("reproduce")
@click.argument("run", type=options.PATH)
@options.output("The second run's folder. Unset: RUN-again, next to the run.")
@options.as_json
def reproduce(run: Path, output: Path | None, as_json: bool) -> None:
    """Train the stored recipe of RUN again, and say whether the result is the same.

    On the same machine with the same versions, weights must be the same to the bit on a CPU. Elsewhere, the validation
    loss must not differ by more than its noise. What the recipe expects is checked too. Leaves with status 1 if the
    result is not the same.

    \b
    Example:
      peftkit reproduce runs/first
    """
    from peftkit.experiments.reproduce import reproduce

    result = reproduce(run, output or run.with_name(f"{run.resolve().name}-again"))
    if as_json:
        console.print_json({**asdict(result), "agrees": result.agrees})
    else:
        console.print_table(None, [result.run, "trained again"], list(_reproduced(result)))
        for expected in result.expected:
            console.print_text(verdict_on(expected))
    if not result.agrees:
        what = "the second run came to other weights"
        what += " on the same machine." if not result.changes else ", and to another loss."
        raise RunError(what, where=result.again, remedy="See the table, and compare the two folders.")


def _reproduced(result: Reproduction) -> Iterator[list[str]]:
    yield ["in", result.again]
    for number, change in enumerate(result.changes):
        yield ["" if number else "what differs", change]
    same = "the same, to the bit" if result.same_weights else f"up to {result.largest_difference:.3g} apart"
    yield ["weights", same]
    if result.eval_loss is not None and result.eval_loss_again is not None:
        yield ["validation loss", f"{result.eval_loss:.6f}, and {result.eval_loss_again:.6f} again"]
    if result.difference is not None:
        gap = result.difference
        verdict = "no more than noise" if result.within_noise else "more than noise"
        yield ["difference", f"{gap.nats:+.6f} nats a token, {gap.low:+.6f} to {gap.high:+.6f}: {verdict}"]
