"""`peftkit quickstart`: the whole job, on the embedded base."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options
from peftkit.cli.tables import print_comparison

if TYPE_CHECKING:
    from peftkit.experiments.quickstart import Quickstart

__all__ = ["command"]


@click.command("quickstart")
@options.defaulted(
    "--output",
    type=options.PATH,
    metavar="DIR",
    default=Path("runs/quickstart"),
    help="Where the runs go: a new folder.",
)
@options.as_json
def command(output: Path, as_json: bool) -> None:
    """Do the whole job on the embedded base, without a network.

    Trains full, lora and qlora with the same hyperparameters, compares them, merges the qlora adapter and lets the
    merged model write. It takes about two minutes on two CPU cores.
    """
    from peftkit.experiments.quickstart import quickstart

    result = quickstart(output)
    if as_json:
        console.print_json(asdict(result))
        return
    print_comparison(result.comparison, "Held-out data, before and after fine-tuning")
    if result.merge.proof:
        off = f"logits {result.merge.proof.relative_error:.1e} off the adapter's own"
        console.print_text(f"\nThe qlora adapter, merged into {result.merged}: {off}.")
    for sample in result.samples:
        console.print_text(f"\n  {sample.prompt}\n  → {sample.written}")
    console.print_text(_next(result))


def _next(result: Quickstart) -> str:
    return f"""
Next, with your own data (a JSON Lines file of prompt and completion):

  peftkit recipes copy quickstart my.yaml
  peftkit train my.yaml --method lora --set 'data.train={{path: my-train.jsonl}}' \\
      --set 'data.validation={{path: my-validation.jsonl}}' --output runs/mine
  peftkit generate runs/mine --prompt "..."
  peftkit merge runs/mine my-model

`base: {{model: gpt2}}` in my.yaml takes the real GPT-2. `peftkit recipes list` shows what else there is, and
{result.report} shows all of it as one page."""
