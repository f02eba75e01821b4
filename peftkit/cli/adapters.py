"""`peftkit adapters …`: list, inspect, verify, compare, combine and shrink adapters."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peftkit import console
from peftkit.cli import options
from peftkit.cli.app import LazyGroup

if TYPE_CHECKING:
    from peftkit.adapters.combine import Combined
    from peftkit.adapters.compare import ModuleOverlap
    from peftkit.adapters.inspect import ModuleUpdate

__all__ = ["COMMANDS", "command"]

_LIST_SHOWN = 3
COMMANDS = {
    "list": "List the adapters below a folder, without opening their bases.",
    "inspect": "Measure what an adapter does to each weight.",
    "verify": "Check that an adapter is sound.",
    "diff": "Compare two adapters: settings, updates and outputs.",
    "combine": "Write the weighted sum of adapters of one base.",
    "shrink": "Write the nearest adapter of a lower rank.",
}
"""In the order of a first use, each with its line in the group's help."""


@click.group("adapters", cls=LazyGroup, find=lambda name: _FOUND[name], summaries=COMMANDS)
def command() -> None:
    """Look into adapters, check and compare them, add them up and make them smaller."""


@click.command("list")
@click.argument("folder", type=options.PATH, default=".")
@options.as_json
def _list(folder: Path, as_json: bool) -> None:
    """List the adapters in FOLDER and below it, without opening their bases.

    \b
    Example:
      peftkit adapters list runs
    """
    from peftkit.adapters.inspect import list_adapters

    found = list_adapters(folder)
    if as_json:
        console.print_json([asdict(listing) for listing in found])
        return
    if not found:
        console.info(f"{folder} holds no adapter.")
        return
    rows = []
    for each in found:
        ranks, targets = ", ".join(map(str, each.ranks)), ", ".join(each.targets)
        after = "?" if each.perplexity is None else f"{each.perplexity:.4g}"
        if each.perplexity is not None and each.base_perplexity is not None:
            after = f"{each.base_perplexity:.4g} → {after}"
        size = console.size(each.bytes)
        rows.append([each.adapter, each.base or "?", each.method or "?", ranks, targets, size, each.fault or after])
    console.print_table(None, ["adapter", "base", "method", "rank", "targets", "size", "perplexity"], rows)


@click.command("inspect")
@click.argument("adapter", type=options.PATH)
@click.option("--plot", type=options.PATH, metavar="FILE", help="Draw it: a .png, .svg or .pdf file.")
@options.base
@options.as_json
def _inspect(adapter: Path, plot: Path | None, base: str | None, quantization: str | None, as_json: bool) -> None:
    """Measure what ADAPTER, an adapter or the run that made it, does to each weight W.

    For each layer and target: the rank; the size of the update compared with the weight, ‖ΔW‖/‖W‖ by Frobenius norms;
    how many directions it really has (effective rank: the exponential of the entropy of its singular values); and its
    largest value. Modules whose B is still zero learnt nothing and are named, and so are tensors with NaN.

    \b
    Examples:
      peftkit adapters inspect runs/first
      peftkit adapters inspect runs/first --plot updates.png
    """
    from peftkit.adapters.inspect import inspect_adapter
    from peftkit.adapters.target import find_adapter

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
        console.print_table(None, columns, [_update_cells(module) for module in report.modules], numeric=True)
    whole = []
    for each in report.whole:
        change = "?" if each.relative_norm is None else f"{each.relative_norm:.2%}"
        whole.append([each.name, " x ".join(map(str, each.shape)), change])
    if whole:
        console.print_text("")
        console.print_table(None, ["trained whole", "shape", "change"], whole)
    for module in report.untouched:
        console.warning(f"{module} is untouched: {report.beginning}.")
    for name in report.not_finite:
        console.warning(f"{name} holds values that are not finite.")


def _update_cells(module: ModuleUpdate) -> list[str]:
    return [
        "" if module.layer is None else str(module.layer),
        module.target,
        "none" if module.rank is None else str(module.rank),
        "none" if module.scaling is None else f"{module.scaling:.3g}",
        "?" if module.norm is None else f"{module.norm:.4g}",
        "?" if module.relative_norm is None else f"{module.relative_norm:.2%}",
        "none" if module.effective_rank is None else f"{module.effective_rank:.1f}",
        "?" if module.largest is None else f"{module.largest:.3g}",
    ]


@click.command("verify")
@click.argument("adapter", type=options.PATH)
@options.base
@options.as_json
def _verify(adapter: Path, base: str | None, quantization: str | None, as_json: bool) -> None:
    """Check ADAPTER, an adapter or the run that made it; leaves with status 2 if a check fails.

    Its files and their hashes, its values, its fingerprint, whether the base here is the one that it was trained on,
    whether it has just the tensors that it should have, and whether it changes what its base says at all.

    \b
    Example:
      peftkit adapters verify runs/first
    """
    from peftkit.adapters.compare import check_adapter
    from peftkit.adapters.target import find_adapter
    from peftkit.cli.tables import tell_checks

    checks = check_adapter(find_adapter(adapter), options.given_base(base, quantization))
    tell_checks(adapter, {"adapter": str(adapter)}, None, checks, as_json)


@click.command("diff")
@click.argument("first", type=options.PATH)
@click.argument("second", type=options.PATH)
@options.base
@options.as_json
def _diff(first: Path, second: Path, base: str | None, quantization: str | None, as_json: bool) -> None:
    """Compare two adapters: their settings, where their updates point, and what they say.

    The cosine is that of the angle between the two updates of a weight. The overlaps are the share that the directions
    which they read (inputs) and write (outputs) have in common, from 0 to 1 (Hu et al. 2021, section 7.2).

    \b
    Example:
      peftkit adapters diff runs/first runs/second
    """
    from peftkit.adapters.compare import diff_adapters
    from peftkit.adapters.inspect import kinds_of
    from peftkit.adapters.target import find_adapter

    found = diff_adapters(find_adapter(first), find_adapter(second), options.given_base(base, quantization))
    if as_json:
        console.print_json(asdict(found))
        return
    console.print_text(f"first:  {first}\nsecond: {second}\n")
    if found.fields:
        rows = [[field.field, _setting(field.first), _setting(field.second)] for field in found.fields]
        console.print_table(None, ["setting", "first", "second"], rows)
    else:
        console.print_text("All recorded settings are equal.")
    console.print_text("")
    columns = ["layer", "target", "ranks", "cosine", "inputs in common", "outputs in common"]
    console.print_table(None, columns, [_overlap_cells(module) for module in found.modules], numeric=True)
    for name, modules in (("first", found.only_first), ("second", found.only_second)):
        if modules:
            kinds = ", ".join(kinds_of(modules))
            console.print_text(f"\nOnly the {name} one changes {kinds}: {len(modules)} modules.")
    console.print_text(f"\nThe second against the first, {found.logits.summary()}.")


def _overlap_cells(module: ModuleOverlap) -> list[str]:
    shares = (module.cosine, module.input_overlap, module.output_overlap)
    ranks = " and ".join(str(rank) for rank in dict.fromkeys(module.ranks))
    return [
        "" if module.layer is None else str(module.layer),
        module.target,
        ranks,
        *("-" if share is None else f"{share:.3f}" for share in shares),
    ]


def _setting(value: Any) -> str:
    if isinstance(value, list) and len(value) > _LIST_SHOWN:
        return f"{len(value)} names, from {value[0]}"
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


@click.command("combine")
@click.argument("output", type=options.PATH)
@click.option(
    "--adapter",
    "parts",
    type=(options.PATH, float),
    multiple=True,
    required=True,
    metavar="ADAPTER WEIGHT",
    help="An adapter and what its update is multiplied by. Given once for each.",
)
@click.option("--rank", type=options.COUNT, help="Compress the sum to this rank, and report the error.")
@options.as_json
def _combine(output: Path, parts: tuple[tuple[Path, float], ...], rank: int | None, as_json: bool) -> None:
    """Write the weighted sum of adapters of one base as one adapter, in OUTPUT.

    The matrices are put side by side, so that the sum is exact and the ranks add up; averaging A and B would not give
    the sum of the products. A weight may be negative.

    \b
    Examples:
      peftkit adapters combine both --adapter runs/polite 0.5 --adapter runs/brief 0.5
      peftkit adapters combine both --adapter runs/polite 1 --adapter runs/brief -0.3 --rank 8
    """
    from peftkit.adapters.combine import combine_adapters
    from peftkit.adapters.target import find_adapter

    _print_made(combine_adapters([(find_adapter(folder), weight) for folder, weight in parts], output, rank), as_json)


@click.command("shrink")
@click.argument("adapter", type=options.PATH)
@click.argument("output", type=options.PATH)
@click.option("--rank", type=options.COUNT, required=True, help="The rank of each module, at most.")
@options.base
@options.as_json
def _shrink(adapter: Path, output: Path, rank: int, base: str | None, quantization: str | None, as_json: bool) -> None:
    """Write ADAPTER with a lower rank, in OUTPUT: the nearest one there is, by singular value decomposition.

    What was lost is reported: the error of the updates, and of the logits and the perplexity on the adapter's own
    sample.

    \b
    Example:
      peftkit adapters shrink runs/first small --rank 2
    """
    from peftkit.adapters.combine import shrink_adapter
    from peftkit.adapters.target import find_adapter

    _print_made(shrink_adapter(find_adapter(adapter), output, rank, options.given_base(base, quantization)), as_json)


def _print_made(made: Combined, as_json: bool) -> None:
    """An adapter that was made of others."""
    if as_json:
        console.print_json(asdict(made))
        return
    text = f"rank {', '.join(map(str, made.ranks))}, {console.size(made.bytes)}"
    text += ": the exact sum" if made.error is None else f": the updates are {made.error:.2%} off"
    if made.worst_error is not None:
        text += f", at most {made.worst_error:.2%} in {made.worst_module}"
    console.info(f"{text}; {made.logits.summary()}" if made.logits else text)
    console.print_text(made.output)


_FOUND: dict[str, click.Command] = {
    str(found.name): found for found in (_list, _inspect, _verify, _diff, _combine, _shrink)
}
