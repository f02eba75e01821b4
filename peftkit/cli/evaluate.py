"""`peftkit evaluate`: how good a model is on held-out data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options
from peftkit.errors import InputError
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Data, Source

if TYPE_CHECKING:
    from peftkit.workflows.evaluate import Evaluation

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
@click.option("--max-length", type=click.IntRange(min=2), help="Tokens of a window. Unset: the data's max_length.")
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Tokens between two windows of a longer text. Unset: side by side, as in training. "
    "Without a recipe, a file is then one long text.",
)
@click.option("--baseline", metavar="TARGET", help="Measure this too, and tell how much better or worse it is.")
@options.base
@options.as_json
def command(
    target: str,
    recipe: str | None,
    data_file: Path | None,
    limit: int | None,
    exact: bool,
    max_new_tokens: int,
    max_length: int | None,
    stride: int | None,
    baseline: str | None,
    base: str | None,
    quantization: str | None,
    as_json: bool,
) -> None:
    """Measure TARGET: a run, an adapter, a model or a base.

    Its perplexity, without options on the validation data of the recipe that it was made from; the error is that of
    other documents of the kind. Of a text that is longer than a window, each token is predicted from what is
    before it in its window. Windows side by side (the stride of training) leave the first of each with little; a
    stride of half a window gives each at least that much, takes twice the time, and a lower perplexity.

    \b
    Examples:
      peftkit evaluate runs/quickstart/lora --exact-match
      peftkit evaluate gpt2 --recipe gpt2-wikitext2
      peftkit evaluate runs/first --data held-out.jsonl --baseline gpt2
      peftkit evaluate gpt2 --data wiki.test.txt --max-length 1024 --stride 512
    """
    given = load_recipe(find_recipe(recipe)).recipe.data if recipe else None

    from peftkit.adapters.target import find_target
    from peftkit.models.base import take_quiet
    from peftkit.workflows.evaluate import Measures, evaluate_target, recorded_data

    take_quiet()
    if given is None:
        has_record = find_target(target).recipe is not None
        given = recorded_data(target) if has_record or not data_file else _plain(data_file, stride)
    if data_file:
        given = given.model_copy(update={"validation": Source(path=str(data_file))})
    if given.validation is None:
        remedy = "Name a file with --data."
        raise InputError("the recipe has no validation data.", where=recipe or target, remedy=remedy)
    data = _limited(given, limit) if limit else given
    known = options.given_base(base, quantization)
    measures = Measures(exact, max_new_tokens, max_length, stride, baseline)
    result = evaluate_target(target, data, measures, known)
    if as_json:
        console.print_json(asdict(result))
    else:
        console.print_table(None, [target, ""], list(_rows(result)))


def _rows(result: Evaluation) -> Iterator[list[str]]:
    error = f" ± {result.standard_error:.4f}" if result.standard_error is not None else ""
    yield ["perplexity", f"{result.perplexity:.6g}"]
    yield ["loss", f"{result.eval_loss:.4f}{error} nats a token"]
    if result.word_perplexity is not None:
        yield ["perplexity of words", f"{result.word_perplexity:.6g}"]
    if result.exact_match is not None:
        yield ["exact match", f"{result.exact_match:.3f}"]
    laid_out = "as in training" if result.stride is None else f"a new one each {result.stride:,} tokens"
    documents = "one document" if result.documents == 1 else f"{result.documents:,} documents"
    yield ["measured on", f"{result.tokens:,} taught tokens in {documents}"]
    yield ["windows", f"of {result.max_length:,} tokens, {laid_out}"]
    if result.baseline is not None:
        gap = result.baseline.difference
        yield [result.baseline.target, f"perplexity {result.baseline.perplexity:.6g}"]
        verdict = "may be chance" if gap.is_noise else "more than chance"
        yield ["difference", f"{gap.nats:+.4f} nats a token, {gap.low:+.4f} to {gap.high:+.4f}: {verdict}"]


def _plain(text: Path, stride: int | None) -> Data:
    """A file that no recipe says anything about; with windows that overlap, a text is one long document."""
    source = Source(path=str(text))
    return Data(train=source) if stride is None else Data(train=source, sample_by="document")


def _limited(data: Data, limit: int) -> Data:
    """The data with only the first validation rows, of each source."""
    if isinstance(data.validation, float):
        raise InputError(
            "cannot act on a share of the training rows.", where="--limit", remedy="Name a file with --data."
        )
    sources = [source.model_copy(update={"limit": limit}) for source in data.validation_sources]
    return data.model_copy(update={"validation": sources})
