"""`peftkit adapters list`: the adapters below a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from peftkit import console
from peftkit.cli import options

__all__ = ["command"]


@click.command("list")
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@options.as_json
def command(folder: Path, as_json: bool) -> None:
    """List the adapters in FOLDER and below it, without opening their bases.

    \b
    Example:
      peftkit adapters list runs
    """
    from peftkit.adapters.inspect import list_adapters

    found = list_adapters(folder)
    if as_json:
        console.print_json([asdict(listing) for listing in found])
        return
    if not found:
        console.info(f"{folder} holds no adapter.")
        return
    columns = ["adapter", "base", "method", "rank", "targets", "size", "perplexity"]
    rows = [
        [
            listing.adapter,
            listing.base or "?",
            listing.method or "?",
            ", ".join(map(str, listing.ranks)),
            ", ".join(listing.targets),
            console.size(listing.bytes),
            listing.fault or _perplexity(listing.base_perplexity, listing.perplexity),
        ]
        for listing in found
    ]
    console.print_table(None, columns, rows)


def _perplexity(before: float | None, after: float | None) -> str:
    if after is None:
        return "?"
    return f"{after:.4g}" if before is None else f"{before:.4g} → {after:.4g}"
