"""`peftkit recipes new`: a recipe from a few answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from peftkit import console
from peftkit.data.formats import AUTO, FORMATS
from peftkit.errors import TargetError
from peftkit.recipe.methods import METHODS

__all__ = ["command"]

_GB = 10**9
_SIZE = click.FloatRange(min=0, min_open=True)
_FORMATS = click.Choice([AUTO, *FORMATS])
_METHODS = click.Choice(["auto", *METHODS])


@click.command("new")
@click.argument("destination", metavar="[PATH]", required=False, type=click.Path(path_type=Path))
@click.option("--data", metavar="FILE", help="A data file, or a data set of the hub as NAME or NAME:CONFIGURATION.")
@click.option("--base", metavar="MODEL", help="The model to start from: a hub name, a folder or builtin:tiny-gpt2.")
@click.option(
    "--memory", type=_SIZE, metavar="GB", help="Memory of the machine that will train, of one GPU if it has any."
)
@click.option("--format", "form", type=_FORMATS, help="What the rows are; auto recognises it.")
@click.option("--method", type=_METHODS, help="How to train; auto takes what the memory holds.")
@click.option("--yes", is_flag=True, help="Ask nothing: where an option is not given, take what would be offered.")
def command(
    destination: Path | None,
    data: str | None,
    base: str | None,
    memory: float | None,
    form: str | None,
    method: str | None,
    yes: bool,
) -> None:
    """Write a recipe for your data, with a comment at each value that says why it was chosen.

    What no option says is asked. The method is chosen by the base's size and the memory: full if 16 bytes for each
    parameter fit, else lora, else qlora. The recipe is checked before it is written, to PATH or into this folder.

    \b
    Examples:
      peftkit recipes new
      peftkit recipes new my.yaml --data train.jsonl --base gpt2 --yes
      peftkit recipes new big.yaml --data rows.csv --base someone/model-7b --memory 24 --method qlora --yes
    """
    if destination:
        _check_free(destination)
    ask = _Questions(yes).answer
    data = ask("data", data, "Data: a file, or a data set of the hub")
    base = ask("base", base, "Base: a hub name, a folder or builtin:tiny-gpt2", "gpt2")
    form = ask("format", form, "Format of the rows", "auto", _FORMATS)
    method = ask("method", method, "Method", "auto", _METHODS)

    from peftkit.models.base import take_quiet
    from peftkit.models.device import detect_hardware
    from peftkit.training.new_recipe import recipe_name, write_new_recipe

    take_quiet()
    hardware = detect_hardware()
    here = round(hardware.memory_bytes / _GB, 1)
    memory = ask("memory", memory, f"Memory in GB; {hardware.name} has", here, _SIZE)
    if destination is None:
        destination = Path(f"{recipe_name(f'{Path(base).name}-{Path(data).stem}')}.yaml")
        _check_free(destination)
    elsewhere = memory * _GB if memory != here else None
    chosen: Any = None if method == "auto" else method
    write_new_recipe(data, base, destination, hardware, memory_bytes=elsewhere, format=form, method=chosen)
    console.print_text(str(destination))


def _check_free(destination: Path) -> None:
    if destination.exists():
        raise TargetError("exists already.", where=str(destination), remedy="Choose another name.")
    if not destination.resolve().parent.is_dir():
        raise TargetError("there is no such folder.", where=str(destination.parent), remedy="Make it first.")


class _Questions:
    """Asks at a terminal for what no option says."""

    def __init__(self, take_offered: bool) -> None:
        self._take_offered = take_offered

    def answer(self, name: str, given: Any, question: str, offered: Any = None, kind: Any = None) -> Any:
        """What the option says, what is offered, or what a person answers.

        Raises:
            UsageError: there is neither, and nobody to ask.
        """
        if given is not None:
            return given
        if self._take_offered and offered is not None:
            return offered
        if self._take_offered or not sys.stdin.isatty():
            other = "" if offered is None else f", or --yes for {offered}"
            raise click.UsageError(f"--{name} is not given, and there is nobody to ask. Give it{other}.")
        return click.prompt(question, default=offered, type=kind, err=True)
