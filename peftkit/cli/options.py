"""Options that several commands have, said once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from peftkit.recipe.schema import Method

__all__ = ["as_json", "method", "output", "overrides"]

Function = TypeVar("Function", bound=Callable[..., Any])


def as_json(function: Function) -> Function:
    """`--json`: the result as one JSON document."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def method(function: Function) -> Function:
    """`--method`: which of the three."""
    kind = click.Choice(get_args(Method))
    return click.option("--method", type=kind, help="Instead of the recipe's own method.")(function)


def overrides(function: Function) -> Function:
    """`--set FIELD=VALUE`, as often as wanted."""
    text = "Change one field of the recipe, as training.learning_rate=1e-4. May be given again."
    return click.option("--set", "overrides", metavar="FIELD=VALUE", multiple=True, help=text)(function)


def output(text: str) -> Callable[[Function], Function]:
    """`--output DIR`, with what it is."""
    return click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help=text)
