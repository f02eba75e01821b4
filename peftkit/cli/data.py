"""`peftkit data`: what the model will see and which tokens are in the loss."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe

if TYPE_CHECKING:
    from peftkit.data.audit import Audit, Shown

__all__ = ["command"]


@click.command("data")
@click.argument("recipe")
@options.defaulted("--show", type=click.IntRange(min=0), default=2, help="Training documents to print.")
@click.option("--tokens", is_flag=True, help="Print these documents token by token, too.")
@options.overrides
@options.as_json
def command(recipe: str, show: int, tokens: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Audit RECIPE's data: what the model will see, and which tokens are in the loss.

    Says which format was recognised and why; counts rows, documents, tokens and labels of training and validation data,
    with what is cut, left out, repeated or in both; and prints the first documents, up to data.max_length, with what is
    in the loss marked. What would keep a run from starting ends it with status 2.

    \b
    Example:
      peftkit data my.yaml
    """
    file = load_recipe(find_recipe(recipe), overrides=overrides)

    from peftkit.report.facts import audit_table
    from peftkit.training.prepare import audit_recipe

    audit, warnings, fault = audit_recipe(file, show=show, tokens=tokens)
    if as_json:
        console.print_json({**asdict(audit), "warnings": warnings})
    else:
        _print_sources(audit)
        head, rows = audit_table(asdict(audit))
        console.print_table(None, head, rows, numeric=True)
        if audit.shown:
            console.print_text("\nThe first training documents; what is in the loss is green, between ⟦ and ⟧.")
        for shown in audit.shown:
            console.print_text("")
            _print_document(shown)
    for message in warnings:
        console.warning(message)
    if fault:
        raise fault


def _print_sources(audit: Audit) -> None:
    from peftkit.report.facts import source_notes

    for name, data in (("train", audit.train), ("validation", audit.validation)):
        if data is None:
            continue
        if data.held_out:
            console.print_text(f"{name}: {data.held_out:.3g} of the training documents, held out")
            continue
        for source in data.sources:
            console.print_text(f"{name}: {source.name}")
            console.print_text(f"  {source.rows:,} rows of the format {source.format}: {source.why}")
            for note in source_notes(asdict(source)):
                console.print_text(f"  {note}")
            for row in source.first_bad:
                console.print_text(f"  left out: {row}")
    console.print_text("")


def _print_document(shown: Shown) -> None:
    console.print_marked(shown.runs)
    if shown.more:
        console.print_text(f"… and {shown.more:,} more tokens, beyond data.max_length")
    if shown.tokens:
        rows = [
            [str(place), str(token.id), token.token, repr(token.text)[1:-1], "yes" if token.in_loss else ""]
            for place, token in enumerate(shown.tokens)
        ]
        console.print_text("")
        console.print_table(None, ["place", "id", "token", "text", "in the loss"], rows)
