"""A group of commands that are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

__all__ = ["LazyGroup"]


class LazyGroup(click.Group):
    """A group whose help imports none of its commands.

    Args:
        package: the dotted name of the package that has each command as `command`, in the file of its name.
        summaries: the first sentence of each command's help, in the order of the group's own help.
    """

    def __init__(self, *args: Any, package: str, summaries: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.package = package
        self.summaries = summaries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of the summaries."""
        del ctx
        return list(self.summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now.

        Raises:
            click.UsageError: there is none; names the nearest one.
        """
        if cmd_name not in self.summaries:
            from peftkit.recipe.names import nearest

            guess = nearest(cmd_name, self.summaries)
            hint = f"Did you mean {guess}?" if guess else f"There are: {', '.join(self.summaries)}."
            raise click.UsageError(f"There is no command {cmd_name!r}. {hint}", ctx)
        command: click.Command = importlib.import_module(f"{self.package}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, as click lays it out for commands that it has."""
        named = {name: click.Command(name, help=text) for name, text in self.summaries.items()}
        _Listing(commands=named).format_commands(ctx, formatter)


class _Listing(click.Group):
    """Commands in the order in which they were given, not by their names."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)
