"""The `peftkit` command: finds the command that is asked for, and turns errors into a line and an exit status."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import click

import peftkit
from peftkit import console
from peftkit.errors import PeftkitError, Stopped, nearest
from peftkit.planning.processes import is_follower
from peftkit.recipe.quantizers import quiet_loggers

__all__ = ["COMMANDS", "LazyGroup", "app", "main"]

COMMANDS = {
    "quickstart": "Run the whole job on the embedded base, without a network.",
    "recipes": "Choose a recipe, copy it, make a new one, check it.",
    "explain": "Say what a field does, which values are usual, and why.",
    "data": "Audit a recipe's data: what the model sees and is trained on.",
    "fetch": "Download what a recipe needs from the hub, to train offline.",
    "plan": "Estimate a recipe's parameters, memory, time and disk space.",
    "train": "Train what a recipe says.",
    "evaluate": "Measure a run, an adapter, a model or a base on data.",
    "tune": "Search over fields of a recipe for the lowest loss.",
    "generate": "Generate text with a run, an adapter, a model or a base.",
    "metrics": "Draw a run's losses and learning rate in the terminal.",
    "compare": "Train a recipe by several methods and compare the results.",
    "report": "Write a run's figures, curves and samples as one HTML page.",
    "merge": "Merge an adapter into its base, as one full model.",
    "adapters": "Inspect, verify, compare, combine and shrink adapters.",
    "verify": "Check every hash in a run folder.",
    "reproduce": "Train a run's stored recipe again and compare the results.",
    "push": "Upload a run, an adapter or a merged model to the hub.",
    "doctor": "Check what this machine can do.",
}
"""In the order of a first use, each with its line in the group's help."""

_FILES = {"fetch": "hub", "push": "hub"} | dict.fromkeys(("metrics", "report", "verify", "reproduce"), "runs")
"""The commands that share a file; the file of any other's name has it as `command`."""


class LazyGroup(click.Group):
    """A group whose help imports none of its commands: `find` imports one, `summaries` has each with its line."""

    def __init__(
        self, *args: Any, find: Callable[[str], click.Command], summaries: Mapping[str, str], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.find = find
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
            guess = nearest(cmd_name, self.summaries)
            hint = f"Did you mean {guess}?" if guess else f"There are: {', '.join(self.summaries)}."
            raise click.UsageError(f"There is no command {cmd_name!r}. {hint}", ctx)
        return self.find(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, each with its line."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(self.summaries.items()))


def _find(name: str) -> click.Command:
    file = importlib.import_module(f"peftkit.cli.{_FILES.get(name, name)}")
    command: click.Command = getattr(file, name if name in _FILES else "command")
    return command


@click.group(
    cls=LazyGroup,
    find=_find,
    summaries=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
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
    quiet_loggers()
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
        from peftkit.shortage import figures, is_out_of_memory
        from peftkit.storage import FULL, is_full

        if is_full(error):
            console.error(f"{FULL} PEFTKIT_CACHE is where data is kept, and TMPDIR what is needed for a moment.")
            return 1
        if is_out_of_memory(error):
            console.error(f"memory was short{figures(str(error))}. Free memory that others use, or use a smaller base.")
            return 1
        reason = (str(error).strip().splitlines() or ["without a message"])[0]
        console.error(f"{type(error).__name__}: {reason} Run it again with PEFTKIT_TRACEBACK=1 to see where.")
        return 1
    return 0
