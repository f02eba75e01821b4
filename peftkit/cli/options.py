"""Options that several commands have, said once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from peftkit.recipe.methods import METHODS
from peftkit.recipe.quantizers import PRESETS

if TYPE_CHECKING:
    from peftkit.adapters.files import GivenBase

__all__ = [
    "arguments_of",
    "as_json",
    "base",
    "given_base",
    "method",
    "nproc",
    "output",
    "overrides",
]

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


def as_json(function: Function) -> Function:
    """`--json`: the result as one JSON document."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def method(function: Function) -> Function:
    """`--method`: which of them."""
    kind = click.Choice(list(METHODS))
    return click.option("--method", type=kind, help="Instead of the recipe's own method.")(function)


def nproc(text: str) -> Callable[[Function], Function]:
    """`--nproc N`, with what is done for so many processes."""
    return click.option("--nproc", type=click.IntRange(min=1), default=1, metavar="N", help=text)


def overrides(function: Function) -> Function:
    """`--set FIELD=VALUE`, as often as wanted."""
    text = "Change one field of the recipe, as training.learning_rate=1e-4. May be given again."
    return click.option("--set", "overrides", metavar="FIELD=VALUE", multiple=True, help=text)(function)


def base(function: Function) -> Function:
    """`--base` and `--quantization`: what an adapter stands on, where its record does not say so."""
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
    return click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help=text)
