"""How decisions are shown, by the commands that have some to tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftkit import console
from peftkit.planning.hardware import Decision

__all__ = ["print_decisions"]


def print_decisions(decisions: Sequence[Decision[Any]]) -> None:
    """A table of what is chosen, and why."""
    rows = [[decision.name, decision.text, decision.reason] for decision in decisions]
    console.print_table(None, ["decision", "choice", "why"], rows)
