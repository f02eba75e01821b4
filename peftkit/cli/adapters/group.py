"""The group of commands; each is the file of its name beside this one."""

from __future__ import annotations

import importlib

import click

__all__ = ["command"]

COMMANDS = ("list", "inspect", "verify", "diff", "combine", "shrink")


class _Commands(click.Group):
    """Imports a command's file when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of `COMMANDS`."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"peftkit.cli.adapters.{cmd_name}").command
        return command


@click.group("adapters", cls=_Commands)
def command() -> None:
    """Look into adapters, check and compare them, add them up and make them smaller."""
