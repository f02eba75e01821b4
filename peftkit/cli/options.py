"""Options that several commands have, said once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from peftkit.recipe.methods import METHODS
from peftkit.recipe.quantizers import PRESETS

if TYPE_CHECKING:
    from peftkit.adapters.files import GivenBase

__all__ = [
    "COUNT", "FILE", "PATH", "arguments_of", "as_json", "base", "defaulted", "given_base", "method", "nproc", "output",
    "overrides",
]  # fmt: skip

PATH = click.Path(path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
COUNT = click.IntRange(min=1)
defaulted = partial(click.option, show_default=True)

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
method = click.option("--method", type=click.Choice(list(METHODS)), help="Instead of the recipe's own method.")
_CHANGE = "Change one field of the recipe, as training.learning_rate=1e-4. May be given again."
overrides = click.option("--set", "overrides", metavar="FIELD=VALUE", multiple=True, help=_CHANGE)

Function = TypeVar("Function", bound=Callable[..., Any])


def arguments_of(context: click.Context, *without: str) -> list[str]:
    """The command line that a command was called with, made again, without some of its options."""
    words: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        value = context.params.get(name)
        if name in without or context.get_parameter_source(name) != click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            given: Any = value if parameter.multiple else [value]
            words += [f"{parameter.opts[0]}={each}" for each in given]
    return words


def nproc(text: str) -> Callable[[Function], Function]:
    """`--nproc N`, with what is done for so many processes."""
    return click.option("--nproc", type=COUNT, default=1, metavar="N", help=text)


def base(function: Function) -> Function:
    """`--base` and `--quantization`: what an adapter was trained on, where its record does not say so."""
    place = "The base's folder or name: if it has moved, or if peftkit did not make the adapter."
    held = "How the base was quantised, if peftkit did not make the adapter."
    function = click.option("--quantization", type=click.Choice(list(PRESETS)), help=held)(function)
    return click.option("--base", metavar="MODEL", help=place)(function)


def given_base(base: str | None, quantization: str | None) -> GivenBase:
    """What `--base` and `--quantization` say."""
    from peftkit.adapters.files import GivenBase
    from peftkit.recipe.hyperparameters import Quantization

    chosen = Quantization.model_validate(PRESETS[quantization]) if quantization else None
    return GivenBase(base, chosen)


def output(text: str) -> Callable[[Function], Function]:
    """`--output DIR`, with what it is."""
    return click.option("--output", type=PATH, metavar="DIR", help=text)
