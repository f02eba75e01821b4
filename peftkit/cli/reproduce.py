"""`peftkit reproduce`: a run's stored recipe trained again, and whether it comes to the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options
from peftkit.cli.tables import verdict_on
from peftkit.errors import RunError

if TYPE_CHECKING:
    from peftkit.experiments.reproduce import Reproduction

__all__ = ["command"]


@click.command("reproduce")
@click.argument("run", type=click.Path(path_type=Path))
@options.output("The second run's folder. Unset: RUN-again, beside the run.")
@options.as_json
def command(run: Path, output: Path | None, as_json: bool) -> None:
    """Train the stored recipe of RUN again, and tell whether it comes to the same.

    On the same machine with the same versions, weights must be the same to the bit on a CPU. Elsewhere, the validation
    loss must not differ by more than its noise. What the recipe expects is checked too. Leaves with status 1 if it does
    not come to the same.

    \b
    Example:
      peftkit reproduce runs/first
    """
    from peftkit.experiments.reproduce import reproduce
    from peftkit.models.base import take_quiet

    take_quiet()
    result = reproduce(run, output or run.with_name(f"{run.resolve().name}-again"))
    if as_json:
        console.print_json({**asdict(result), "agrees": result.agrees})
    else:
        console.print_table(None, [result.run, "trained again"], list(_rows(result)))
        for expected in result.expected:
            console.print_text(verdict_on(expected))
    if not result.agrees:
        what = "the second run came to other weights"
        what += " on the same machine." if not result.changes else ", and to another loss."
        raise RunError(what, where=result.again, remedy="See the table, and compare the two folders.")


def _rows(result: Reproduction) -> Iterator[list[str]]:
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
