"""The group of commands; each is the file of its name in this folder."""

from __future__ import annotations

import click

from peftkit.cli.lazy import LazyGroup

__all__ = ["command"]

COMMANDS = {
    "list": "List the adapters below a folder, without opening their bases.",
    "inspect": "Measure what an adapter does to each weight.",
    "verify": "Check that an adapter is sound.",
    "diff": "Compare two adapters: settings, updates and outputs.",
    "combine": "Write the weighted sum of adapters of one base.",
    "shrink": "Write the nearest adapter of a lower rank.",
}
"""In the order of a first use, each with its line in the group's help."""


@click.group("adapters", cls=LazyGroup, package="peftkit.cli.adapters", summaries=COMMANDS)
def command() -> None:
    """Look into adapters, check and compare them, add them up and make them smaller."""
