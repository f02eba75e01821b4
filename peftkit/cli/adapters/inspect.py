"""`peftkit adapters inspect`: how far an adapter moves each weight."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options

if TYPE_CHECKING:
    from peftkit.adapters.inspect import ModuleUpdate, WholeUpdate

__all__ = ["command"]


@click.command("inspect")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it: a .png, .svg or .pdf file.")
@options.base
@options.as_json
def command(adapter: Path, plot: Path | None, base: str | None, quantization: str | None, as_json: bool) -> None:
    """Measure what ADAPTER, an adapter or the run that made it, does to each weight W.

    For each layer and target: the rank; how large the update is beside the weight, ‖ΔW‖/‖W‖ by Frobenius norms; how
    many directions it really has (effective rank: the exponential of the entropy of its singular values); and its
    largest number. Modules whose B is still zero learnt nothing and are named, and so are tensors with NaN.

    \b
    Examples:
      peftkit adapters inspect runs/first
      peftkit adapters inspect runs/first --plot updates.png
    """
    from peftkit.adapters.operations import inspect_adapter
    from peftkit.adapters.target import find_adapter
    from peftkit.models.base import take_quiet

    take_quiet()
    report = inspect_adapter(find_adapter(adapter), options.given_base(base, quantization))
    if plot is not None and report.modules:
        from peftkit.adapters.inspect import plot_updates

        plot_updates(report.modules, f"{adapter} on {report.base}", plot)
        console.info(f"drawn: {plot}")
    if as_json:
        console.print_json(asdict(report))
        return
    method = f"{report.method or 'made elsewhere'}{', DoRA' if report.use_dora else ''}"
    size = f"{report.parameters:,} parameters, {console.size(report.bytes)}"
    console.print_text(f"{report.adapter}: {method} on {report.base or 'a base that is not named'}, {size}\n")
    if report.modules:
        columns = ["layer", "target", "rank", "scaling", "‖ΔW‖", "‖ΔW‖/‖W‖", "effective rank", "largest |ΔW|"]
        console.print_table(None, columns, [_cells(module) for module in report.modules], numeric=True)
    if report.whole:
        console.print_text("")
        console.print_table(None, ["trained whole", "shape", "change"], [_whole_cells(whole) for whole in report.whole])
    for module in report.untouched:
        console.warning(f"{module} is untouched: its B is all zeros.")
    for name in report.not_finite:
        console.warning(f"{name} holds values that are not finite.")


def _cells(module: ModuleUpdate) -> list[str]:
    return [
        "" if module.layer is None else str(module.layer),
        module.target,
        str(module.rank),
        f"{module.scaling:.3g}",
        f"{module.norm:.4g}",
        "?" if module.relative_norm is None else f"{module.relative_norm:.2%}",
        f"{module.effective_rank:.1f}",
        f"{module.largest:.3g}",
    ]


def _whole_cells(whole: WholeUpdate) -> list[str]:
    change = "?" if whole.relative_norm is None else f"{whole.relative_norm:.2%}"
    return [whole.name, " x ".join(map(str, whole.shape)), change]
