"""`peftkit train`: one run, from a recipe to a finished folder."""

from __future__ import annotations

from pathlib import Path

import click

from peftkit import console
from peftkit.cli import options
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe

__all__ = ["command"]


@click.command("train")
@click.argument("recipe")
@options.method
@options.output("The run folder, which must be new or empty. Unset: the recipe's output, or runs/NAME.")
@options.overrides
@options.as_json
def command(recipe: str, method: str | None, output: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train what RECIPE says.

    RECIPE is a file, or the name of a shipped recipe. The run ends in DIR/adapter or, for method full, in DIR/model.

    \b
    Examples:
      peftkit train quickstart
      peftkit train my.yaml --method qlora --output runs/first
      peftkit train my.yaml --set training.learning_rate=1e-4 --set training.max_steps=20
    """
    file = load_recipe(find_recipe(recipe), method=method, overrides=overrides, output=output)
    for note in file.notes():
        console.info(note)

    from peftkit.models.base import take_quiet
    from peftkit.workflows.run import run

    take_quiet()
    folder, manifest = run(file)
    if as_json:
        console.print_json({"output": str(folder.path), **manifest.to_json()})
        return
    metrics = manifest.metrics
    place = folder.adapter if file.recipe.trains_adapter else folder.model
    if metrics.perplexity is not None:
        console.info(f"perplexity {metrics.base_perplexity:.4g} before, {metrics.perplexity:.4g} after")
    console.info(f"{metrics.train_tokens:,} tokens in {metrics.train_seconds:.0f} s; opened again and found right:")
    console.print_text(str(place))
