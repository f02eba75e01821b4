"""`peftkit verify`: whether a run folder holds what its run wrote."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from peftkit import console
from peftkit.cli import options
from peftkit.errors import TargetError

__all__ = ["command"]

_WORDS = {True: "yes", False: "NO", None: "unknown"}


@click.command("verify")
@click.argument("run", type=click.Path(path_type=Path))
@options.as_json
def command(run: Path, as_json: bool) -> None:
    """Check every hash in the folder RUN: recipe, metrics, outputs and checkpoints.

    Leaves with status 2 if a file is missing or is not what the run wrote. `peftkit adapters verify` looks further, at
    what an adapter does.

    \b
    Example:
      peftkit verify runs/first
    """
    from peftkit.workflows.verify_run import verify_run

    manifest, checks = verify_run(run)
    failed = [check for check in checks if check.sound is False]
    if as_json:
        parts = [asdict(check) for check in checks]
        console.print_json({"run": str(run), "status": manifest.status, "sound": not failed, "parts": parts})
    else:
        rows = [[check.name, _WORDS[check.sound], check.detail] for check in checks]
        console.print_table(f"{run}: {manifest.status}", ["part", "sound", ""], rows)
    if failed:
        first = failed[0]
        remedy = "Checkpoints that are not sound are passed over by --resume." if "checkpoints" in first.name else None
        raise TargetError(f"is not sound: {first.name}: {first.detail}.", where=str(run), remedy=remedy)
