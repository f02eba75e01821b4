"""How the commands that verify show what they found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftkit import console
from peftkit.errors import TargetError
from peftkit.runs.verify import Check

__all__ = ["print_checks", "refuse"]

_WORDS = {True: "yes", False: "NO", None: "unknown"}


def print_checks(title: str | None, heading: str, checks: Sequence[Check]) -> None:
    """A table with a line for each check."""
    rows = [[check.name, _WORDS[check.passed], check.detail] for check in checks]
    console.print_table(title, [heading, "sound", ""], rows)


def refuse(place: Path, failed: Sequence[Check], remedy: str | None = None) -> None:
    """Leave with status 2 if a check failed.

    Raises:
        TargetError: one did.
    """
    if failed:
        first = failed[0]
        raise TargetError(f"is not sound: {first.name}: {first.detail.rstrip('.')}.", where=str(place), remedy=remedy)
