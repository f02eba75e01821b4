"""A base on the hub: which of its repository's files make it. Nothing here needs torch."""

from __future__ import annotations

from fnmatch import fnmatch

from peftkit.hub import Repo, Snapshot, open_snapshot
from peftkit.recipe.schema import Base

__all__ = ["WEIGHTS_NAME", "find_hub_base"]

WEIGHTS_NAME = "model.safetensors"
"""Of weights that are one file."""

_WEIGHTS = "model*.safetensors"  # their parts too, and not `consolidated.safetensors`, which is a second copy
_OTHERS = ("*.json", "*.txt", "*.model", "*.jinja")  # configuration, tokenizer and chat template


def find_hub_base(base: Base, field: str, *, weights: bool = True) -> tuple[Snapshot, list[str]]:
    """A hub model at its commit, and those of its files that make a base, without fetching them.

    Weights in other forms than safetensors are not among them: some can run code when they are opened.

    Raises:
        UnfetchedError: it is not on this machine, and the hub cannot be reached, or must not be.
        FieldError: the hub does not give it.
    """
    snapshot = open_snapshot(Repo("model", str(base.model), base.revision, field))
    patterns = (*_OTHERS, _WEIGHTS) if weights else _OTHERS
    names = [name for name in snapshot.sizes if any(fnmatch(name, pattern) for pattern in patterns)]
    names = [name for name in names if "/" not in name]
    found = any(name.endswith(".safetensors") for name in names)
    return snapshot, names if found or not weights else [*names, WEIGHTS_NAME]  # which is told to be missing
