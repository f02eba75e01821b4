"""`peftkit merge`: adapters and their base made into one model."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options

if TYPE_CHECKING:
    from peftkit.adapters.merge import MergeReceipt

__all__ = ["command"]

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


class _Size(click.ParamType[int]):
    """A number of bytes, written as 500MB or 5GB."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        if isinstance(value, int):
            return value
        parts = re.fullmatch(r"(\d+)\s*([KMG]B)", str(value).upper())
        if parts is None or int(parts[1]) == 0:
            self.fail(f"{value!r} is no size; write it as 500MB or 5GB.", param, ctx)
        return int(parts[1]) * _UNITS[parts[2]]


@click.command("merge")
@click.argument("adapter", type=options.PATH)
@click.argument("output", type=options.PATH)
@options.defaulted(
    "--onto",
    type=click.Choice(["dequantized", "original"]),
    default="dequantized",
    help="For qlora: the base's rounded weights that the adapter was trained on, or the original ones, which the "
    "adapter does not know; how much that costs is measured and reported.",
)
@options.defaulted(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32", help="Number type to save in."
)
@options.defaulted("--shard-size", type=_Size(), default="50GB", help="Largest size of a file.")
@options.defaulted("--verify/--no-verify", default=True, help="Compare the result with the adapter on its base.")
@options.defaulted("--weight", type=float, default=1.0, help="What the adapter's update is multiplied by.")
@click.option(
    "--also",
    type=(options.PATH, float),
    multiple=True,
    metavar="ADAPTER WEIGHT",
    help="Add another adapter of the same base, times a weight. May be given again.",
)
@options.base
@options.as_json
def command(
    adapter: Path,
    output: Path,
    onto: str,
    dtype: str,
    shard_size: int,
    verify: bool,
    weight: float,
    also: tuple[tuple[Path, float], ...],
    base: str | None,
    quantization: str | None,
    as_json: bool,
) -> None:
    """Make one full model of ADAPTER and its base, in OUTPUT.

    ADAPTER is an adapter or the run that made it, OUTPUT a new folder. The model is opened again by a process without
    PEFT and bitsandbytes, and must give the adapter's own logits; merge.json in the folder is the receipt. A full
    fine-tuned model is written in another number type, or in other files, and proven in the same way.

    \b
    Examples:
      peftkit merge runs/first my-model
      peftkit merge runs/first my-model --dtype bfloat16 --shard-size 5GB
      peftkit merge runs/polite my-model --weight 0.7 --also runs/brief 0.3
    """
    from peftkit.adapters.merge import MergeSettings, merge
    from peftkit.adapters.target import find_weights

    settings = MergeSettings(onto, dtype, shard_size, verify)  # type: ignore[arg-type]
    parts = [(find_weights(folder), factor) for folder, factor in ((adapter, weight), *also)]
    receipt = merge(parts, output, settings, options.given_base(base, quantization))
    if as_json:
        console.print_json({"output": str(output), **asdict(receipt)})
        return
    _tell(receipt)
    console.print_text(str(output))


def _tell(receipt: MergeReceipt) -> None:
    proof = receipt.proof
    if proof is None:
        console.warning("it was not compared with the adapter, as --no-verify says.")
        return
    if receipt.tolerance is None:
        other = "the base's original weights are not those that the adapter was trained on"
        console.warning(f"{other}; compared with the adapter on its own, {proof.summary()}")
    else:
        opened, bound = "opened without PEFT and bitsandbytes", f"the logits may be {receipt.tolerance:.0e} off"
        console.info(f"{opened}, {proof.summary()}; {bound}")
