"""`peftkit train`: one run, from a recipe to a finished folder, or from where it stopped to there."""

from __future__ import annotations

from pathlib import Path

import click

from peftkit import console
from peftkit.cli import options
from peftkit.errors import PeftkitError
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest

__all__ = ["command"]


@click.command("train")
@click.argument("recipe")
@options.method
@options.output("The run folder, which must be new or empty. Unset: the recipe's output, or runs/NAME.")
@options.overrides
@click.option("--resume", is_flag=True, help="Go on with the run in the folder, or begin it where there is none.")
@click.option(
    "--allow-changes",
    metavar="FIELD,…",
    multiple=True,
    help="With --resume: what may differ from when the run began: fields, as training.learning_rate, or sections.",
)
@click.option(
    "--auto-batch", is_flag=True, help="Where a step does not fit into memory, halve the batch and accumulate twice."
)
@options.nproc("Train in N processes on this machine, each on a GPU of its own where there are any, in the same steps.")
@click.option("--report/--no-report", "reports", default=True, help="Write report.html into the run folder.")
@options.as_json
@click.pass_context
def command(
    context: click.Context,
    recipe: str,
    method: str | None,
    output: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    allow_changes: tuple[str, ...],
    auto_batch: bool,
    nproc: int,
    reports: bool,
    as_json: bool,
) -> None:
    """Train what RECIPE says.

    RECIPE is a file, the name of a shipped recipe, or, with --resume, the folder of a run. The run ends in DIR/adapter
    or, for method full, in DIR/model. Ctrl-C and SIGTERM finish the step, save it and leave with status 130 or 143.

    --resume resumes from the newest checkpoint that verifies, and ends in the same weights as a run that never
    stopped. What has changed since the run began is listed and refused, unless --allow-changes names it.

    \b
    Examples:
      peftkit train quickstart
      peftkit train my.yaml --method qlora --output runs/first
      peftkit train my.yaml --set training.learning_rate=1e-4 --set training.max_steps=20
      peftkit train runs/first --resume
      peftkit train my.yaml --nproc 2
    """
    if allow_changes and not resume:
        raise click.UsageError("--allow-changes says what may differ from the run that is resumed: give --resume.")
    if nproc > 1:
        _launch(context, nproc)
        return
    own = RunFolder(Path(recipe))  # which, to be resumed, brings its own recipe
    by_folder = resume and own.recipe.is_file()
    place, output = (own.recipe, output or own.path) if by_folder else (find_recipe(recipe), output)
    file = load_recipe(place, method=method, overrides=overrides, output=output)
    for note in file.notes() if not resume else ():
        console.info(note)

    from peftkit.training.processes import joined, stopping_at_signals
    from peftkit.training.run import RunOptions, follow, run

    allowed = tuple(field.strip() for given in allow_changes for field in given.split(","))
    known = RunFolder(file.output)
    is_finished = resume and known.manifest.is_file() and known.read().status == "finished"
    with joined() as processes, stopping_at_signals() as stop:
        if not processes.is_main:
            follow(file, processes, stop)
            return
        run_options = RunOptions(resume=resume, allowed_changes=allowed, auto_batch=auto_batch)
        folder, manifest = run(file, run_options, processes, stop)
    if reports and not is_finished:  # where it stays as it is
        _report(folder)
    if as_json:
        console.print_json({"output": str(folder.path), **manifest.to_json()})
        return
    _tell(manifest)
    console.print_text(str(folder.adapter if file.recipe.trains_adapter else folder.model))


def _launch(context: click.Context, nproc: int) -> None:
    """Let the same command train in several processes."""
    if context.params["auto_batch"]:
        raise click.UsageError("--auto-batch works in one process: leave --nproc out until a batch is found.")
    from peftkit.training.launch import train_in_processes

    train_in_processes(["train", *options.arguments_of(context, "nproc")], nproc)


def _report(folder: RunFolder) -> None:
    """Write the page; the run is finished whether or not that succeeds."""
    from peftkit.report.page import write_report

    try:
        write_report([folder.path])
    except (PeftkitError, OSError) as error:
        console.warning(f"the report could not be written: {error}")


def _tell(manifest: RunManifest) -> None:
    """What was measured, for people."""
    metrics = manifest.metrics
    if metrics.perplexity is not None and metrics.base_perplexity is not None:
        console.info(f"perplexity {metrics.base_perplexity:.4g} before, {metrics.perplexity:.4g} after")
    if metrics.skipped_steps:
        console.info(f"{metrics.skipped_steps} steps were skipped; see the warnings in manifest.json")
    if metrics.checkpoints:
        waited = (metrics.checkpoint_seconds or 0.0) / (metrics.train_seconds or 1.0)
        console.info(f"{metrics.checkpoints} checkpoints, for which training waited {waited:.1%} of its time")
    console.info(f"{metrics.train_tokens:,} tokens in {metrics.train_seconds:.0f} s; saved and verified:")
