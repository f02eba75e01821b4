"""`peftkit adapters diff`: where two adapters differ."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peftkit import console
from peftkit.cli import options

if TYPE_CHECKING:
    from peftkit.adapters.compare import ModuleOverlap

__all__ = ["command"]

_LIST_SHOWN = 3


@click.command("diff")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@options.base
@options.as_json
def command(first: Path, second: Path, base: str | None, quantization: str | None, as_json: bool) -> None:
    """Compare two adapters: their settings, where their updates point, and what they say.

    The cosine is that of the angle between the two updates of a weight. The overlaps are the share that the directions
    which they read (inputs) and write (outputs) have in common, from 0 to 1 (Hu et al. 2021, section 7.2).

    \b
    Example:
      peftkit adapters diff runs/first runs/second
    """
    from peftkit.adapters.lora import kinds_of
    from peftkit.adapters.operations import diff_adapters
    from peftkit.adapters.target import find_adapter
    from peftkit.models.base import take_quiet

    take_quiet()
    found = diff_adapters(find_adapter(first), find_adapter(second), options.given_base(base, quantization))
    if as_json:
        console.print_json(asdict(found))
        return
    console.print_text(f"first:  {first}\nsecond: {second}\n")
    if found.fields:
        rows = [[field.field, _value(field.first), _value(field.second)] for field in found.fields]
        console.print_table(None, ["setting", "first", "second"], rows)
    else:
        console.print_text("All recorded settings are equal.")
    console.print_text("")
    columns = ["layer", "target", "ranks", "cosine", "inputs in common", "outputs in common"]
    console.print_table(None, columns, [_cells(module) for module in found.modules], numeric=True)
    for name, modules in (("first", found.only_first), ("second", found.only_second)):
        if modules:
            kinds = ", ".join(kinds_of(modules))
            console.print_text(f"\nOnly the {name} one changes {kinds}: {len(modules)} modules.")
    console.print_text(f"\nThe second against the first, {found.logits.summary()}.")


def _cells(module: ModuleOverlap) -> list[str]:
    shares = (module.cosine, module.input_overlap, module.output_overlap)
    ranks = " and ".join(str(rank) for rank in dict.fromkeys(module.ranks))
    return [
        "" if module.layer is None else str(module.layer),
        module.target,
        ranks,
        *("-" if share is None else f"{share:.3f}" for share in shares),
    ]


def _value(value: Any) -> str:
    if isinstance(value, list) and len(value) > _LIST_SHOWN:
        return f"{len(value)} names, from {value[0]}"
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)
