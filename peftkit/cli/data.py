"""`peftkit data`: what the model will see and what it will be taught."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe

if TYPE_CHECKING:
    from peftkit.data.audit import Audit, SourceAudit

__all__ = ["command"]

_SHOWN_CHARACTERS = 600


@click.command("data")
@click.argument("recipe")
@click.option("--show", type=click.IntRange(min=0), default=2, show_default=True, help="Training documents to print.")
@options.overrides
@options.as_json
def command(recipe: str, show: int, overrides: tuple[str, ...], as_json: bool) -> None:
    r"""Audit RECIPE's data: what the model will see, and what it will be taught.

    Counts documents, tokens and labels of training and validation data, with what is cut, left out, doubled or stands
    in both, and prints the first documents with the taught part marked.

    \b
    Example:
      peftkit data my.yaml
    """
    file = load_recipe(find_recipe(recipe), overrides=overrides)

    from peftkit.models.base import take_quiet
    from peftkit.workflows.audit import audit_recipe

    take_quiet()
    audit = audit_recipe(file, show=show)
    if as_json:
        console.print_json(asdict(audit))
        return
    _print_counts(audit)
    for number, shown in enumerate(audit.shown, start=1):
        console.print_text(f"\nTraining document {number}; what is taught stands in green, between ⟦ and ⟧:")
        console.print_marked(shown.given[-_SHOWN_CHARACTERS:], shown.taught[:_SHOWN_CHARACTERS])
    _warn(audit)


def _print_counts(audit: Audit) -> None:
    columns = [_column(audit.train)] + ([_column(audit.validation)] if audit.validation else [])
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    console.print_table(None, ["data", "train", "validation"][: len(columns) + 1], rows, numeric=True)


def _column(source: SourceAudit) -> dict[str, str]:
    counts, quantiles = source.counts, source.length_quantiles
    return {
        "documents": f"{counts.documents:,}",
        "  empty, left out": f"{counts.empty_documents:,}",
        "  prompt fills max_length, left out": f"{counts.untaught_documents:,}",
        "  cut at max_length": f"{counts.cut_documents:,}",
        "  seen before (duplicates)": f"{source.duplicates:,}",
        "tokens a document: 50%, 90%, 99%": f"{quantiles['50%']}, {quantiles['90%']}, {quantiles['99%']}",
        "  longest": f"{quantiles['longest']:,}",
        "sequences": f"{counts.sequences:,}{', packed' if source.packed else ''}",
        "tokens": f"{counts.tokens:,}",
        "  lost by cutting": f"{counts.cut_tokens:,}",
        "slots that hold a token": f"{source.filled:.1%}",
        "tokens that are taught": f"{source.taught:.1%}",
        "documents whose end is taught": f"{source.ends_taught:.1%}",
    }


def _warn(audit: Audit) -> None:
    if audit.leaked:
        console.warning(f"{audit.leaked:,} validation documents stand in the training data too.")
    for name, source in (("train", audit.train), ("validation", audit.validation)):
        if source and not source.ends_taught:
            console.warning(f"no document of {name} teaches its end, so the model will not learn to stop.")
