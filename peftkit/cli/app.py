"""The `peftkit` command: finds the command that is asked for, and turns errors into a line and an exit status."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import click

import peftkit
from peftkit import console
from peftkit.errors import PeftkitError, Stopped
from peftkit.planning.processes import is_follower
from peftkit.recipe.names import nearest
from peftkit.storage import FULL, is_full

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = (
    "quickstart",
    "recipes",
    "explain",
    "data",
    "fetch",
    "plan",
    "train",
    "evaluate",
    "tune",
    "generate",
    "metrics",
    "compare",
    "report",
    "merge",
    "adapters",
    "verify",
    "reproduce",
    "push",
    "doctor",
)
"""In the order of a first use; each is the file of that name in this folder, with the command as `command`."""


class _Commands(click.Group):
    """Imports a command's file when it is asked for; none of them imports torch before it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of `COMMANDS`."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            guess = nearest(cmd_name, COMMANDS)
            hint = f"Did you mean {guess}?" if guess else f"There are: {', '.join(COMMANDS)}."
            raise click.UsageError(f"There is no command {cmd_name!r}. {hint}", ctx)
        command: click.Command = importlib.import_module(f"peftkit.cli.{cmd_name}").command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(peftkit.__version__, message="peftkit %(version)s")
def app() -> None:
    """Fine-tune language models from one strict recipe: full, LoRA, or LoRA on a quantised base.

    \b
    First steps:
      peftkit quickstart              the whole job in two minutes, without a network
      peftkit recipes list            choose a recipe
      peftkit recipes copy quickstart my.yaml
      peftkit train my.yaml --method qlora
      peftkit merge runs/NAME/adapter my-model
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit status.

    0 done, 1 failed at run time, 2 wrong input, 130 and 143 stopped by a signal. `PEFTKIT_TRACEBACK=1` shows where an
    error came from.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # the libraries' notes to programmers say nothing to a user
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # while imported, it tells which kernels are not there
    sys.exit(_status(arguments))


def _status(arguments: Sequence[str] | None) -> int:
    try:
        if is_follower():
            console.hush()
        app.main(args=arguments, prog_name="peftkit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        console.error("interrupted.")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # whoever read the output has had enough; nothing more can be written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Stopped as stopped:
        console.info(str(stopped))
        return stopped.exit_status
    except PeftkitError as error:
        if os.environ.get("PEFTKIT_TRACEBACK"):
            raise
        for line in error.lines():
            console.error(line)
        return error.exit_status
    except Exception as error:
        if os.environ.get("PEFTKIT_TRACEBACK"):
            raise
        if is_full(error):
            console.error(f"{FULL} PEFTKIT_CACHE is where data is kept, and TMPDIR what is needed for a moment.")
            return 1
        reason = str(error).strip().splitlines()
        console.error(
            f"{type(error).__name__}: {reason[0] if reason else 'without a message'} "
            "Run it again with PEFTKIT_TRACEBACK=1 to see where."
        )
        return 1
    return 0
