"""Where the supported versions of the libraries differ, each difference once, with the version that made it.

Recipes and this package use the newest names; what is older gets its own from here. Versions are compared nowhere else,
and here only where nothing else shows which version it is.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final

__all__ = ["RENAMED", "spelled"]

RENAMED: Final[Mapping[str, str]] = {
    # TrainingArguments, Transformers 5.23
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}
"""Arguments of the libraries' classes by their newest names, with those that older versions know."""


def spelled(arguments: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """Arguments by the names that the installed version knows; one that it knows by no name keeps its own."""
    return {
        RENAMED[name] if name not in known and RENAMED.get(name) in known else name: value
        for name, value in arguments.items()
    }
