"""The label audit of a recipe's data, with the tokenizer of its base and without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftkit.data.audit import Audit, audit, check
from peftkit.data.prepare import prepare, texts
from peftkit.errors import InputError
from peftkit.models.base import locate_base
from peftkit.models.start import new_start
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.schema import Recipe

__all__ = ["Examined", "audit_recipe"]


@dataclass(frozen=True)
class Examined:
    """The figures, and what is to be said about them."""

    audit: Audit
    warnings: list[str]
    fault: InputError | None
    """Why training would not begin."""


def audit_recipe(file: RecipeFile, *, show: int) -> Examined:
    """Audit what a recipe trains and validates on.

    Raises:
        InputError: base or data cannot be read, or nothing would be taught.
    """
    recipe = file.recipe
    with file.locating():
        tokenizer = _tokenizer(recipe)
        data = prepare(recipe.data, tokenizer)
        result = audit(data, tokenizer, recipe.training.per_device_train_batch_size, show=show)
    try:
        with file.locating():
            return Examined(result, check(data, recipe.data), None)
    except InputError as fault:
        return Examined(result, [], fault)


def _tokenizer(recipe: Recipe) -> Any:
    if recipe.base.init is None:
        return locate_base(recipe.base, weights=False).tokenizer()
    return new_start(recipe, recipe.base.init, texts(recipe.data)).tokenizer
