"""`peftkit verify`: whether a run folder holds what its run wrote."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from peftkit import console
from peftkit.cli import options
from peftkit.cli.tables import print_checks, refuse

__all__ = ["command"]


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
    from peftkit.runs.verify import verify_run

    manifest, checks = verify_run(run)
    failed = [check for check in checks if check.passed is False]
    if as_json:
        checked = [asdict(check) for check in checks]
        console.print_json({"run": str(run), "status": manifest.status, "sound": not failed, "checks": checked})
    else:
        print_checks(f"{run}: {manifest.status}", "part", checks)
    damaged = bool(failed) and failed[0].name.startswith("checkpoints/")
    refuse(run, failed, "Checkpoints that are not sound are passed over by --resume." if damaged else None)
