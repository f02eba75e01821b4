"""`peftkit evaluate`: how good a model is on held-out data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from peftkit import console
from peftkit.cli import options
from peftkit.errors import InputError
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Data, Source

__all__ = ["command"]


@click.command("evaluate")
@click.argument("target")
@click.option(
    "--recipe", "recipe", metavar="RECIPE", help="Evaluate on this recipe's data instead of the target's own."
)
@click.option(
    "--data",
    "data_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Evaluate on this file, read as the recipe's data is; as plain text where there is no recipe.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first rows.")
@click.option("--exact-match", "exact", is_flag=True, help="Also let it write, and count completions that are right.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="For --exact-match.")
@options.base
@options.as_json
def command(
    target: str,
    recipe: str | None,
    data_file: Path | None,
    limit: int | None,
    exact: bool,
    max_new_tokens: int,
    base: str | None,
    quantization: str | None,
    as_json: bool,
) -> None:
    """Measure TARGET: a run, an adapter, a model or a base.

    Its perplexity, without options on the validation data of the recipe that it was made from.

    \b
    Examples:
      peftkit evaluate runs/quickstart/lora --exact-match
      peftkit evaluate gpt2 --recipe gpt2-wikitext2
      peftkit evaluate runs/first --data held-out.jsonl
    """
    given = load_recipe(find_recipe(recipe)).recipe.data if recipe else None

    from peftkit.adapters.target import find_target
    from peftkit.models.base import take_quiet
    from peftkit.workflows.evaluate import evaluate_target, recorded_data

    take_quiet()
    if given is None:
        has_record = find_target(target).recipe is not None
        given = recorded_data(target) if has_record or not data_file else Data(train=Source(path=str(data_file)))
    if data_file:
        given = given.model_copy(update={"validation": Source(path=str(data_file))})
    if given.validation is None:
        remedy = "Name a file with --data."
        raise InputError("the recipe has no validation data.", where=recipe or target, remedy=remedy)
    data = _limited(given, limit) if limit else given
    known = options.given_base(base, quantization)
    result = evaluate_target(target, data, exact=exact, max_new_tokens=max_new_tokens, given=known)
    if as_json:
        console.print_json(asdict(result))
        return
    rows = [["perplexity", f"{result.perplexity:.4f}"], ["loss", f"{result.eval_loss:.4f} nats a token"]]
    if result.exact_match is not None:
        rows.append(["exact match", f"{result.exact_match:.3f}"])
    rows.append(["measured on", f"{result.tokens:,} taught tokens in {result.sequences:,} sequences"])
    console.print_table(None, [target, ""], rows)


def _limited(data: Data, limit: int) -> Data:
    """The data with only the first validation rows, of each source."""
    if isinstance(data.validation, float):
        raise InputError(
            "cannot act on a share of the training rows.", where="--limit", remedy="Name a file with --data."
        )
    sources = [source.model_copy(update={"limit": limit}) for source in data.validation_sources]
    return data.model_copy(update={"validation": sources})
