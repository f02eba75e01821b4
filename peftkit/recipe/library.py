"""The recipes that come with peftkit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from peftkit.errors import InputError, nearest

__all__ = ["ShippedRecipe", "find_recipe", "list_recipes", "recipe_name", "shipped_recipes"]

_PACKAGE = Path(__file__).resolve().parents[1]
# An installed package carries the recipes inside it; a checkout has them beside it, where people look for them.
_FOLDERS = (_PACKAGE / "assets" / "recipes", _PACKAGE.parent / "recipes")

_LISTED = re.compile(r"^(?:  )?(name|method|model|format|description): (.*?)(?: +#.*)?$", re.MULTILINE)
"""A field of a shipped recipe that is listed, on a line of its own, and its value."""


def shipped_recipes() -> dict[str, Path]:
    """The shipped recipes' files by name."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@dataclass(frozen=True)
class ShippedRecipe:
    """What a shipped recipe says of itself."""

    name: str
    method: str
    model: str  # that it starts from; `new` for one made from `base.init`
    format: str
    description: str


def list_recipes() -> list[ShippedRecipe]:
    """The shipped recipes, read line by line: YAML and the schema would take longer than everything else together.

    Each of them writes out what is listed, and a test compares that with what the loader reads.
    """
    texts = [path.read_text(encoding="utf-8") for path in shipped_recipes().values()]
    return [ShippedRecipe(**{"model": "new", **dict(_LISTED.findall(text))}) for text in texts]


def find_recipe(name: str) -> Path:
    """The file that a name on the command line stands for: a path, or a shipped recipe's name.

    Raises:
        InputError: there is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if name.removesuffix(".yaml") in shipped:
        return shipped[name.removesuffix(".yaml")]
    guess = nearest(path.stem, shipped)
    remedy = f"Did you mean {guess}?" if guess else f"The shipped ones are: {', '.join(shipped)}."
    raise InputError("is neither a recipe file nor a shipped recipe.", where=name, remedy=remedy)


def recipe_name(path: Path) -> str:
    """What to call a recipe on the command line: a shipped one by its name, another by its path."""
    return path.stem if shipped_recipes().get(path.stem) == path else str(path)
