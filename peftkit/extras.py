"""What only some commands need, and a default installation leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from peftkit.errors import InputError

__all__ = ["EXTRAS", "require_extra"]

EXTRAS: Mapping[str, tuple[str, ...]] = {"tune": ("optuna",)}
"""The extras of the package that a command needs, by the command's name, with what each installs."""


def require_extra(command: str) -> None:
    """See that the libraries of a command's extra are there, without importing them.

    Raises:
        InputError: some are not; names them, and how to install them.
    """
    missing = [library for library in EXTRAS[command] if find_spec(library) is None]
    if missing:
        raise InputError(f"peftkit {command} needs {', '.join(missing)}: pip install 'peftkit[{command}]'")
