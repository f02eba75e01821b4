"""`peftkit merge`: an adapter and its base made into one model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from peftkit import console
from peftkit.cli import options

__all__ = ["command"]


@click.command("merge")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--onto",
    type=click.Choice(["dequantized", "original"]),
    default="dequantized",
    show_default=True,
    help="For qlora: the base's rounded weights that the adapter was trained on, or the original ones.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Number type to save in.",
)
@options.as_json
def command(adapter: Path, output: Path, onto: str, dtype: str, as_json: bool) -> None:
    """Make one full model of ADAPTER and its base, in OUTPUT.

    ADAPTER is an adapter or the run that made it, OUTPUT a new folder. The model is opened again by a process without
    PEFT and bitsandbytes, and must give the adapter's own logits; merge.json in the folder is the receipt.

    \b
    Example:
      peftkit merge runs/first my-model
    """
    from peftkit.merging.merge import merge_adapter
    from peftkit.models.base import take_quiet
    from peftkit.models.target import find_adapter

    take_quiet()
    receipt = merge_adapter(find_adapter(adapter), output, onto=onto, dtype=dtype)  # type: ignore[arg-type]
    if as_json:
        console.print_json({"output": str(output), **asdict(receipt)})
        return
    if receipt.tolerance is None:
        console.warning(
            f"the base's original weights are not those that the adapter was trained on: "
            f"the logits are {receipt.relative_error:.1e} off the adapter's own."
        )
    else:
        console.info(
            f"opened without PEFT and bitsandbytes: logits {receipt.relative_error:.1e} off the adapter's own, "
            f"{receipt.tolerance:.0e} allowed"
        )
    console.print_text(str(output))
