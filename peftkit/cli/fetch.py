"""`peftkit fetch`: all that a recipe needs of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe

if TYPE_CHECKING:
    from peftkit.fetch import Item

__all__ = ["command"]

_DIGITS = 12  # of a commit, enough to tell two apart


@click.command("fetch")
@click.argument("recipe")
@options.method
@options.overrides
@options.as_json
def command(recipe: str, method: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Download what RECIPE needs of the hub, so that it trains without a network.

    Brings the base (configuration, tokenizer and safetensors, never other weights) and the files of the named
    configurations and splits of the data sets, at the recipe's revisions, into the hub's cache. Says what is there
    already and what needs no fetching. It can be given again: whole files stay. What cannot be had is listed, with
    status 2; with HF_HUB_OFFLINE=1, that is what is not on this machine.

    \b
    Examples:
      peftkit fetch my.yaml
      HF_HUB_OFFLINE=1 peftkit train my.yaml
    """
    file = load_recipe(find_recipe(recipe), method=method, overrides=overrides)

    from peftkit.fetch import fetch
    from peftkit.hub import cache_place

    items, fault = fetch(file)
    if as_json:
        console.print_json({"items": [asdict(item) for item in items]})
    else:
        rows = [list(_row(item)) for item in items]
        console.print_table(None, ["field", "name", "commit", "size", "fetched"], rows)
        console.info(f"what is fetched is in {cache_place()}")
    if fault:
        raise fault


def _row(item: Item) -> Iterator[str]:
    yield item.field
    yield item.name
    yield (item.commit or "")[:_DIGITS]
    yield "" if item.bytes is None else console.size(item.bytes)
    yield "missing" if item.missing else console.size(item.fetched_bytes) if item.origin == "hub" else "not needed"
