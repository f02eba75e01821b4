"""`peftkit adapters verify`: whether an adapter is what it was, on what it belongs on, and does anything."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from peftkit import console
from peftkit.cli import options
from peftkit.cli.verdict import print_checks, refuse

__all__ = ["command"]


@click.command("verify")
@click.argument("adapter", type=click.Path(path_type=Path))
@options.base
@options.as_json
def command(adapter: Path, base: str | None, quantization: str | None, as_json: bool) -> None:
    """Check ADAPTER, an adapter or the run that made it; leaves with status 2 if a check fails.

    Its files and their hashes, its values, its fingerprint, whether the base here is the one that it was trained on,
    whether it has just the tensors that it should have, and whether it changes what its base says at all.

    \b
    Example:
      peftkit adapters verify runs/first
    """
    from peftkit.adapters.target import find_adapter
    from peftkit.adapters.verify import check_adapter
    from peftkit.models.base import take_quiet

    take_quiet()
    checks = check_adapter(find_adapter(adapter), options.given_base(base, quantization))
    failed = [check for check in checks if check.passed is False]
    if as_json:
        checked = [asdict(check) for check in checks]
        console.print_json({"adapter": str(adapter), "sound": not failed, "checks": checked})
    else:
        print_checks(None, "check", checks)
    refuse(adapter, failed)
