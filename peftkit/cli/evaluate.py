"""`peftkit evaluate`: how good a model is on held-out data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options
from peftkit.errors import InputError
from peftkit.metrics import in_group, small
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Data, Generation

if TYPE_CHECKING:
    from peftkit.evaluation.evaluate import Baseline, Evaluation
    from peftkit.evaluation.generation import TextScores

__all__ = ["command"]


@click.command("evaluate")
@click.argument("target")
@click.option("--recipe", metavar="RECIPE", help="Evaluate on this recipe's data instead of the target's own.")
@click.option(
    "--data",
    "data_file",
    type=options.FILE,
    help="Evaluate on this file, read as the recipe's data is; as plain text where there is no recipe.",
)
@click.option("--limit", type=options.COUNT, help="Only the first rows.")
@click.option("--generate", "generates", is_flag=True, help="Also let it write the completions, and score them.")
@click.option("--max-new-tokens", type=options.COUNT, help="For --generate, instead of the recipe's.")
@click.option("--num-beams", type=options.COUNT, help="For --generate, instead of the recipe's.")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --generate: a new file for what it wrote (JSON Lines of prompt, written and references).",
)
@click.option("--max-length", type=click.IntRange(min=2), help="Tokens of a window. Unset: the data's max_length.")
@click.option(
    "--stride",
    type=options.COUNT,
    help="Tokens between two windows of a longer text. Unset: side by side, as in training. "
    "Without a recipe, a file is then one long text.",
)
@click.option("--baseline", metavar="TARGET", help="Measure this too, and tell how much better or worse it is.")
@click.option("--choices", type=options.FILE, help="Also answer these questions: a file of prompt, choices and answer.")
@click.option(
    "--forgetting",
    type=options.FILE,
    metavar="TEXT",
    help="Also tell how much worse than its untouched base it is on this text.",
)
@options.base
@options.as_json
def command(
    target: str,
    recipe: str | None,
    data_file: Path | None,
    limit: int | None,
    generates: bool,
    max_new_tokens: int | None,
    num_beams: int | None,
    save: Path | None,
    max_length: int | None,
    stride: int | None,
    baseline: str | None,
    choices: Path | None,
    forgetting: Path | None,
    base: str | None,
    quantization: str | None,
    as_json: bool,
) -> None:
    """Measure TARGET: a run, an adapter, a model or a base, which the hub's name and @REVISION may stand for.

    Its perplexity, without options on the validation data of the recipe that it was made from; the error is that of
    other documents of the kind. Of a text that is longer than a window, each token is predicted from what is
    before it in its window. Windows side by side (the stride of training) leave the first of each with little; a
    stride of half a window gives each at least that much, takes twice the time, and a lower perplexity.

    --generate scores what it writes by exact match, BLEU, chrF, TER (sacrebleu) and ROUGE-L; rows with the same prompt
    are references for one completion. It writes as the recipe's section generation says.

    \b
    Examples:
      peftkit evaluate runs/quickstart/lora --generate
      peftkit evaluate gpt2 --recipe gpt2-wikitext2
      peftkit evaluate runs/first --data held-out.jsonl --baseline gpt2
      peftkit evaluate runs/first --forgetting wiki.test.txt --choices questions.jsonl
      peftkit evaluate gpt2 --data wiki.test.txt --max-length 1024 --stride 512
    """
    changes = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    changes = {name: value for name, value in changes.items() if value is not None}
    if (changes or save) and not generates:
        raise click.UsageError("--max-new-tokens, --num-beams and --save belong to --generate: give it too.")
    if save and save.exists():
        raise InputError("exists already.", where=str(save), remedy="Name a new file with --save.")
    file = load_recipe(find_recipe(recipe)) if recipe else None
    given = file.recipe if file else None

    from peftkit.evaluation.evaluate import Measures, data_of, evaluate_target, recorded_recipe

    given = given or recorded_recipe(target, needed=not data_file)
    data = data_of(given, data_file, stride, where=recipe or target)
    data = _limited(data, limit) if limit else data
    generation = (given.generation if given else Generation()).model_copy(update=changes) if generates else None
    measures = Measures(generation, save, max_length, stride, baseline, choices, forgetting)
    with file.locating() if file else nullcontext():
        result = evaluate_target(target, data, measures, options.given_base(base, quantization))
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
    laid_out = "as in training" if result.stride is None else f"a new one each {result.stride:,} tokens"
    documents = "one document" if result.documents == 1 else f"{result.documents:,} documents"
    yield ["measured on", f"{result.tokens:,} tokens in the loss of {documents}"]
    yield ["windows", f"of {result.max_length:,} tokens, {laid_out}"]
    if result.text is not None:
        yield from _text_rows(result.text, "")
    if result.choices is not None:
        scores = result.choices
        yield ["accuracy", f"{scores.accuracy:.3f} ± {scores.standard_error:.3f}, by guessing {scores.chance:.3f}"]
        yield ["  by length", f"{scores.accuracy_by_length:.3f}, of {scores.questions:,} questions"]
    if result.baseline is not None:
        yield from _baseline_rows(result.baseline)
    if result.forgetting is not None:
        forgotten = result.forgetting
        yield ["forgetting", f"perplexity {forgotten.perplexity:.6g} on the base's own text"]
        yield from _baseline_rows(forgotten.base)


def _baseline_rows(baseline: Baseline) -> Iterator[list[str]]:
    gap = baseline.difference
    yield [baseline.target, f"perplexity {baseline.perplexity:.6g}"]
    verdict = "may be chance" if gap.is_noise else "more than chance"
    yield ["  difference", f"{gap.nats:+.4f} nats a token, {gap.low:+.4f} to {gap.high:+.4f}: {verdict}"]
    if baseline.text is not None:
        yield from _text_rows(baseline.text, "  ")


def _text_rows(scores: TextScores, indent: str) -> Iterator[list[str]]:
    for name, metric in in_group("completions").items():
        direction = ", lower is better" if metric.better == "lower" else ""
        yield [f"{indent}{metric.label}", f"{small(getattr(scores, name))}{direction}"]
    yield [f"{indent}written", f"{scores.prompts:,} completions, {scores.references:,} references"]


def _limited(data: Data, limit: int) -> Data:
    """The data with only the first validation rows, of each source."""
    if isinstance(data.validation, float):
        what = "cannot act on a share of the training rows."
        raise InputError(what, where="--limit", remedy="Name a file with --data.")
    sources = [source.model_copy(update={"limit": limit}) for source in data.validation_sources]
    return data.model_copy(update={"validation": sources})
