"""`peftkit adapters combine`: the weighted sum of adapters."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from peftkit import console
from peftkit.cli import options

__all__ = ["command"]


@click.command("combine")
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--adapter",
    "parts",
    type=(click.Path(path_type=Path), float),
    multiple=True,
    required=True,
    metavar="ADAPTER WEIGHT",
    help="An adapter and what its update is multiplied by. Given once for each.",
)
@click.option("--rank", type=click.IntRange(min=1), help="Compress the sum to this rank; the error is told.")
@options.as_json
def command(output: Path, parts: tuple[tuple[Path, float], ...], rank: int | None, as_json: bool) -> None:
    """Write the weighted sum of adapters of one base as one adapter, in OUTPUT.

    The matrices are put side by side, so that the sum is exact and the ranks add up; averaging A and B would not give
    the sum of the products. A weight may be negative.

    \b
    Examples:
      peftkit adapters combine both --adapter runs/polite 0.5 --adapter runs/brief 0.5
      peftkit adapters combine both --adapter runs/polite 1 --adapter runs/brief -0.3 --rank 8
    """
    from peftkit.adapters.operations import combine_adapters
    from peftkit.adapters.target import find_adapter
    from peftkit.models.base import take_quiet

    take_quiet()
    made = combine_adapters([(find_adapter(folder), weight) for folder, weight in parts], output, rank)
    if as_json:
        console.print_json(asdict(made))
        return
    console.info(options.made_adapter(made))
    console.print_text(made.output)
