"""`--set section.field=value`: one field of a recipe, changed on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftkit.errors import Problem, RecipeError, printable
from peftkit.recipe.document import DEEPEST, Path, dotted, parse_value

__all__ = ["Override", "parse_override"]


@dataclass(frozen=True)
class Override:
    """A field's path and its new value."""

    path: Path
    value: Any

    @property
    def where(self) -> str:
        """How errors name it."""
        return f"--set {dotted(self.path)}"


def parse_override(text: str) -> Override:
    """Read `field=value`, the value being YAML as in a recipe.

    Raises:
        RecipeError: it is not of that form.
    """
    name, sign, value = text.partition("=")
    path = tuple(name.strip().split("."))
    if not sign or not all(part and part.isprintable() for part in path):
        where = f"--set {printable(text)}"
        raise RecipeError([Problem(where, "", "is not FIELD=VALUE.", "Write it as training.learning_rate=1e-4.")])
    if len(path) > DEEPEST:
        raise RecipeError([Problem(f"--set {dotted(path)}", "", "is nested too deeply.", "A recipe needs few levels.")])
    if path[0] == "methods":
        own = ".".join(path[2:]) or "training.learning_rate"
        remedy = f"Set {own} itself: what is set on the command line holds for the method that runs."
        raise RecipeError([Problem(f"--set {dotted(path)}", dotted(path), "cannot be set there.", remedy)])
    return Override(path, parse_value(value, f"--set {dotted(path)}", path))
