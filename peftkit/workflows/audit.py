"""The label audit of a recipe's data, with the tokenizer of its base and without its weights."""

from __future__ import annotations

from typing import Any

from peftkit.data.audit import Audit, audit
from peftkit.data.prepare import texts
from peftkit.models.base import locate_base
from peftkit.models.start import new_start
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.schema import Recipe

__all__ = ["audit_recipe"]


def audit_recipe(file: RecipeFile, *, show: int) -> Audit:
    """Audit what a recipe trains and validates on.

    Raises:
        InputError: base or data are wrong, or nothing would be taught.
    """
    recipe = file.recipe
    with file.locating():
        return audit(recipe.data, _tokenizer(recipe), recipe.training.per_device_train_batch_size, show=show)


def _tokenizer(recipe: Recipe) -> Any:
    if recipe.base.init is None:
        return locate_base(recipe.base, weights=False).tokenizer()
    return new_start(recipe, recipe.base.init, texts(recipe.data.train, recipe.data, "data.train")).tokenizer
