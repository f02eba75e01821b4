"""`peftkit plan`: what a recipe will take, before it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from peftkit import console
from peftkit.cli import options
from peftkit.cli.tables import print_decisions
from peftkit.planning.hardware import device_named
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe

if TYPE_CHECKING:
    from peftkit.planning.plan import Plan

__all__ = ["command"]

_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "end", "runtime")


@click.command("plan")
@click.argument("recipe")
@options.method
@click.option("--all-methods", is_flag=True, help="Plan full, lora and qlora.")
@click.option("--dry", is_flag=True, help="Measure nothing: compute memory from the model's structure alone.")
@click.option(
    "--device",
    metavar="NAME",
    help="Compute for another machine: t4, rtx4090, a100, h100 and others, or a GPU's memory, as 24GB.",
)
@options.nproc("Compute for each of N processes that train together, each on a device of its own; nothing is measured.")
@options.defaulted(
    "--seconds",
    type=click.FloatRange(min=1),
    default=20.0,
    help="About how long the steps of each method are measured.",
)
@options.overrides
@options.as_json
@click.pass_context
def command(
    context: click.Context,
    recipe: str,
    method: str | None,
    all_methods: bool,
    dry: bool,
    device: str | None,
    nproc: int,
    seconds: float,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Tell what RECIPE will take: parameters, memory, time and room on the disk.

    Its own first steps are trained, on its own data, in a folder that is thrown away, with its longest rows and its
    validation data; memory and time are measured on them. --dry looks at the model's structure alone, and --device
    computes for a machine that is not here. Where it does not fit, the changes are named with which it would.

    \b
    Examples:
      peftkit plan my.yaml
      peftkit plan my.yaml --all-methods
      peftkit plan gpt2-wikitext2 --dry --method qlora
      peftkit plan my.yaml --device t4 --all-methods
      peftkit plan my.yaml --device a100 --nproc 8 --set training.fsdp=true
    """
    if all_methods and method:
        raise click.UsageError("--all-methods plans each method: leave --method out.")
    file = load_recipe(find_recipe(recipe), method=method, overrides=overrides)

    hardware = device_named(device) if device else None

    from peftkit.training.plan import plan, plan_methods
    from peftkit.training.processes import stopping_at_signals

    if all_methods:
        plans = plan_methods(options.arguments_of(context, "all_methods", "as_json"))
    else:
        with stopping_at_signals() as stop:
            plans = [plan(file, seconds=None if dry else seconds, elsewhere=hardware, processes=nproc, stop=stop)]
    if as_json:
        console.print_json({"recipe": recipe, "plans": [each.to_json() for each in plans]})
        return
    _show(plans)
    for concern in (concern for each in plans for concern in _concerns(each)):
        console.warning(concern)


def _show(plans: Sequence[Plan]) -> None:
    first = plans[0]
    console.print_table(None, ["", *(each.method for each in plans)], list(_rows(plans)), numeric=True)
    console.print_text("")
    how = "Measured on the run's own steps" if first.measured else "Computed from the model's structure"
    together = f", for each of {first.processes} processes" if first.processes > 1 else ""
    console.print_text(f"{how}, on {first.device} in {first.precision}{together}.")
    if len(plans) == 1:
        console.print_text("")
        print_decisions(first.decisions)


def _rows(plans: Sequence[Plan]) -> Iterator[list[str]]:
    yield ["trained parameters", *(f"{each.trainable_parameters:,}" for each in plans)]
    yield ["all parameters", *(f"{each.total_parameters:,}" for each in plans)]
    yield ["steps", *(f"{each.steps:,}" for each in plans)]
    yield ["epochs", *(f"{each.epochs:.3g}" for each in plans)]
    if any(each.train_tokens for each in plans):
        yield ["tokens", *(f"{each.train_tokens or 0:,}" for each in plans)]
    yield ["peak memory", *(console.size(each.peak_memory_bytes) for each in plans)]
    for part in (part for part in _PARTS if any(each.memory[part] for each in plans)):
        yield [f"  {part}", *(console.size(each.memory[part]) for each in plans)]
    yield ["memory there is", *(console.size(each.limit_bytes) for each in plans)]
    disks = [each.disk for each in plans]
    kept = (f"{disk.checkpoints} of {console.size(disk.checkpoint_bytes)}" for disk in disks)
    yield ["checkpoints", *(text if disk.checkpoints else "none" for disk, text in zip(disks, kept, strict=True))]
    yield ["disk needed", *(console.size(each.disk.total) for each in plans)]
    yield ["disk free", *(console.size(each.free_bytes) for each in plans)]
    times = [each.train_seconds for each in plans]
    if any(times):
        yield ["time", *(console.duration(time.seconds) if time else "" for time in times)]
        for name, bound in (("  at least", "low"), ("  at most", "high")):
            bounds = (getattr(time, bound, None) for time in times)
            yield [name, *("" if seconds is None else console.duration(seconds) for seconds in bounds)]


def _concerns(plan: Plan) -> Iterator[str]:
    if missing := plan.what_is_missing():
        yield f"{plan.method}: {missing}"
    if plan.peak_memory_bytes > plan.limit_bytes:
        fits = "; or ".join(f"{fit.change} (about {console.size(fit.peak_bytes)})" for fit in plan.would_fit)
        remedy = f"It would with {fits}." if fits else "Lower data.max_length, or use a smaller base."
        yield f"{plan.method} does not fit into memory. {remedy}"
    if plan.disk.total > plan.free_bytes:
        yield f"{plan.method} does not fit on the disk. Lower training.save_total_limit, or name another output."
