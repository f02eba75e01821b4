"""The model that a command's TARGET stands for, ready to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit.adapters.base import AS_RECORDED, Footing, GivenBase, check_fit, find_footing, model_footing, put_adapter
from peftkit.adapters.files import has_tokenizer, read_adapter
from peftkit.adapters.target import Target
from peftkit.errors import TargetError
from peftkit.models.base import open_tokenizer
from peftkit.recipe.schema import Base

__all__ = ["Opened", "open_adapter", "open_base", "open_target"]


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode on its device, with its tokenizer."""

    model: Any
    tokenizer: Any
    target: Target


def open_target(target: Target, device: str, given: GivenBase = AS_RECORDED) -> Opened:
    """Open a target on `device`, as it was trained: an adapter on the very base, quantised or not, that it belongs on.

    Raises:
        TargetError: it is damaged, or its base is not the one it was trained on.
    """
    if target.kind == "adapter":
        model, tokenizer = open_adapter(Path(target.folder), device, given)
        return Opened(model.eval(), tokenizer, target)
    if given != AS_RECORDED:
        raise TargetError("is a whole model, which has no base.", where=target.folder, remedy="Leave out --base.")
    return _whole(model_footing(_named(target.folder)), device, target)


def open_base(base: Base, device: str) -> Opened:
    """Open the base that a recipe names, whole and untouched.

    Raises:
        TargetError: there is none.
    """
    return _whole(model_footing(base), device, Target("model", str(base.model), None))


def open_adapter(folder: Path, device: str, given: GivenBase = AS_RECORDED) -> tuple[Any, Any]:
    """An adapter on a freshly loaded base of its own, and the tokenizer.

    Raises:
        TargetError: tensors are missing or damaged, or the base has changed since.
    """
    adapter = read_adapter(folder)
    footing = find_footing(adapter, given)
    check_fit(adapter, footing)
    tokenizer = open_tokenizer(folder) if has_tokenizer(folder) else footing.base.tokenizer()
    return put_adapter(footing.load(device), adapter), tokenizer


def _named(name: str) -> Base:
    """A folder, or a name of the hub, which may say `@` and a revision."""
    model, _, revision = (name, "", "") if Path(name).expanduser().exists() else name.partition("@")
    return Base(model=model, revision=revision or None)


def _whole(footing: Footing, device: str, target: Target) -> Opened:
    return Opened(footing.load(device).eval(), footing.base.tokenizer(), target)
