"""`peftkit adapters shrink`: an adapter's nearest one of a lower rank."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from peftkit import console
from peftkit.cli import options

__all__ = ["command"]


@click.command("shrink")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--rank", type=click.IntRange(min=1), required=True, help="The rank of each module, at most.")
@options.base
@options.as_json
def command(adapter: Path, output: Path, rank: int, base: str | None, quantization: str | None, as_json: bool) -> None:
    """Write ADAPTER with a lower rank, in OUTPUT: the nearest one there is, by singular value decomposition.

    What was lost is told: the error of the updates, and of the logits and the perplexity on the adapter's own sample.

    \b
    Example:
      peftkit adapters shrink runs/first small --rank 2
    """
    from peftkit.adapters.operations import shrink_adapter
    from peftkit.adapters.target import find_adapter
    from peftkit.models.base import take_quiet

    take_quiet()
    made = shrink_adapter(find_adapter(adapter), output, rank, options.given_base(base, quantization))
    if as_json:
        console.print_json(asdict(made))
        return
    console.info(options.made_adapter(made))
    console.print_text(made.output)
