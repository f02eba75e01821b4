"""`peftkit compare`: one recipe by several methods and seeds, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from peftkit import console
from peftkit.cli import options
from peftkit.cli.tables import print_comparison
from peftkit.errors import InputError, nearest
from peftkit.metrics import in_group
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.methods import COMPARED, METHODS, Method

__all__ = ["command"]


@click.command("compare")
@click.argument("recipe")
@options.defaulted("--methods", metavar="METHOD,…", default=",".join(COMPARED), help="Which to compare.")
@options.defaulted("--seeds", type=options.COUNT, default=1, help="Runs of each, with other seeds.")
@click.option(
    "--vary",
    "varied",
    metavar="FIELD=VALUE,…",
    multiple=True,
    help="Values for a field, each of which is run, as lora.r=4,8,16. May be given again.",
)
@click.option(
    "--lr-per-method",
    "rates",
    metavar="RATE,…",
    help="Learning rates to choose each method's own from, by the validation loss of its first seed.",
)
@click.option("--generate", "generates", is_flag=True, help="Also let every run write completions, and score them.")
@options.defaulted(
    "--by",
    type=click.Choice(["eval_loss", *in_group("completions")]),
    default="eval_loss",
    help="The metric that decides which is best.",
)
@options.output("The comparison's folder. Unset: runs/compare-NAME.")
@options.overrides
@options.as_json
def command(
    recipe: str,
    methods: str,
    seeds: int,
    varied: tuple[str, ...],
    rates: str | None,
    generates: bool,
    by: str,
    output: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train RECIPE by several methods with the same hyperparameters, and put the results side by side.

    Each run is an ordinary run folder in DIR, trained in a process of its own. Stopped or killed, the same command
    resumes where it was: finished runs stay. A difference is more than noise where the interval of Welch's test over
    the seeds does not hold 0; one seed says nothing about noise. The untouched base is in the table too, whole and
    as qlora quantises it. The report is in DIR/report.html.

    \b
    Examples:
      peftkit compare my.yaml --seeds 3
      peftkit compare my.yaml --methods lora --vary lora.r=4,8,16 --seeds 3
      peftkit compare my.yaml --methods full,lora --lr-per-method 1e-5,5e-5,2e-4
    """
    place = find_recipe(recipe)
    chosen = _methods(methods)
    vary = dict(_varied(text) for text in varied)
    folder = output or Path("runs") / f"compare-{load_recipe(place, overrides=overrides).recipe.name}"

    from peftkit.experiments.compare import CompareOptions, compare
    from peftkit.report.page import write_report

    asked = CompareOptions(chosen, seeds, vary, _listed(rates or ""), generates, by, overrides)
    comparison = compare(place, asked, folder)
    report = write_report([folder])
    if as_json:
        console.print_json({"output": str(folder), **comparison.to_json()})
        return
    print_comparison(comparison, f"{recipe} on held-out data")
    console.print_text(str(report))


def _methods(text: str) -> tuple[Method, ...]:
    for name in _listed(text):
        if name not in METHODS:
            guess = nearest(name, METHODS)
            remedy = f"Did you mean {guess}?" if guess else f"There are: {', '.join(METHODS)}."
            raise InputError(f"there is no method {name}.", where="--methods", remedy=remedy)
    if not _listed(text):
        raise InputError("names no method.", where="--methods", remedy=f"There are: {', '.join(METHODS)}.")
    return tuple(method for method in get_args(Method) if method in _listed(text))


def _varied(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, values = text.partition("=")
    if not equals or not name.strip() or not _listed(values):
        remedy = "Write FIELD=VALUE,VALUE as lora.r=4,8,16."
        raise InputError(f"{text!r} gives a field no values.", where="--vary", remedy=remedy)
    return name.strip(), _listed(values)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
