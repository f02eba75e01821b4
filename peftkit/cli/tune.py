"""`peftkit tune`: a search over fields of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options
from peftkit.compatibility import require_extra
from peftkit.metrics import METRICS

if TYPE_CHECKING:
    from peftkit.experiments.search import Tried, Tuned

__all__ = ["command"]


@click.command("tune")
@click.argument("recipe")
@click.option(
    "--study", type=options.PATH, metavar="FILE", required=True, help="Which fields to search over, in which ranges."
)
@options.output("The search's folder. Unset: runs/tune-NAME.")
@click.option("--trials", type=options.COUNT, metavar="N", help="Trials in all, instead of the study's n_trials.")
@click.option(
    "--time-limit",
    "minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Save the trial that trains and end then, instead of by the study's time_limit_minutes.",
)
@options.method
@options.overrides
@options.as_json
def command(
    recipe: str,
    study: Path,
    output: Path | None,
    trials: int | None,
    minutes: float | None,
    method: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Search over fields of RECIPE for the lowest validation loss.

    The first trial has the recipe's own values. Each trial is an ordinary run in DIR/trials, trained in a process of
    its own; those that are worse than the median of the others at the same evaluation are ended early. Stopped or
    killed, the same command resumes where it was. The recipe of the best trial is DIR/best.yaml.

    It needs Optuna: pip install 'peftkit[tune]'.

    \b
    A study file:
      n_trials: 20
      time_limit_minutes: 30          # optional
      seed: 0
      pruning: true
      space:
        training.learning_rate: {low: 1e-5, high: 1e-3, log: true}
        training.num_train_epochs: {low: 1, high: 5, step: 1}
        lora.r: [4, 8, 16]

    \b
    Examples:
      peftkit tune my.yaml --study study.yaml
      peftkit tune my.yaml --study study.yaml --trials 40 --time-limit 60
    """
    require_extra("tune")

    from peftkit.recipe.library import find_recipe
    from peftkit.recipe.loader import load_recipe

    place = find_recipe(recipe)
    name = load_recipe(place, method=method, overrides=overrides).recipe.name

    from peftkit.experiments.tune import TuneOptions, tune

    asked = TuneOptions(study, method, overrides, trials, minutes)
    result = tune(place, asked, output or Path("runs") / f"tune-{name}")
    if as_json:
        console.print_json(asdict(result))
        return
    _print(result, recipe)


def _print(result: Tuned, recipe: str) -> None:
    names = list(dict.fromkeys(name for tried in result.trials for name in tried.values))
    measured = [METRICS[name].label for name in ("eval_loss", "perplexity")]
    columns = ["trial", "", *measured, *(name.rpartition(".")[2] for name in names)]
    rows = [list(_cells(tried, result, names)) for tried in result.trials]
    console.print_table(f"{recipe} on its validation data", columns, rows, numeric=True)
    if result.importances:
        shares = (f"{name} {share:.0%}" for name, share in result.importances.items())
        console.print_text(f"\nWhat mattered: {', '.join(shares)}.")
    for tried in result.trials:
        if tried.error:
            console.warning(f"{tried.run} failed: {tried.error}")
    console.print_text(f"\n{_verdict(result)}\n{result.best_recipe}")


def _cells(tried: Tried, result: Tuned, names: list[str]) -> Iterator[str]:
    yield "recipe" if tried.number is None else str(tried.number)
    yield "the recipe's own" if tried == result.recipe and tried.number is not None else tried.state
    yield "" if tried.eval_loss is None else f"{tried.eval_loss:.4f}"
    yield "" if tried.perplexity is None else f"{tried.perplexity:#.4g}"
    for name in names:
        value = tried.values.get(name, "")
        yield f"{value:.3g}" if isinstance(value, float) else str(value)


def _verdict(result: Tuned) -> str:
    best, own = result.best, result.recipe
    if best is None or own is None or result.gain is None:
        return "The recipe's own values came to no loss that the best could be compared with. The best recipe:"
    if best == own:
        return "No other values were better than the recipe's own:"
    return (
        f"{best.run} is {result.gain:.4f} nats better than the recipe, on the data that it was chosen by, which\n"
        "flatters it. Measure it on other data:\n\n"
        f"  peftkit evaluate {result.output}/{best.run} --baseline {result.output}/{own.run} --data FILE\n\n"
        "Its recipe:"
    )
