"""What a command's TARGET is, by what is in the folder (a run, an adapter, a model or a base), and how it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftkit.adapters.base import AS_RECORDED, Footing, GivenBase, check_fit, find_footing, model_footing, put_adapter
from peftkit.adapters.files import CONFIG_NAME, has_tokenizer, read_adapter
from peftkit.adapters.record import Record
from peftkit.errors import TargetError
from peftkit.models.base import open_tokenizer
from peftkit.recipe.schema import Base, Recipe

__all__ = [
    "Opened", "Target", "find_adapter", "find_target", "find_weights", "open_adapter", "open_base", "open_target",
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A place that a model can be opened from, and the recipe that made it, where one is recorded."""

    kind: Literal["adapter", "model"]
    folder: str
    recipe: Recipe | None


def find_target(name: str) -> Target:
    """Tell what a name on the command line stands for by what is in the folder.

    Raises:
        TargetError: the folder holds nothing that can be opened.
    """
    folder = Path(name).expanduser()
    if not folder.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise TargetError("there is no such folder.", where=name)
        return Target("model", name, None)
    for inner in (folder, folder / "adapter", folder / "model"):
        if (inner / CONFIG_NAME).is_file():
            return _recorded("adapter", inner)
        if (inner / "config.json").is_file():
            return _recorded("model", inner)
    what = "holds neither a run, an adapter nor a model."
    remedy = "An unfinished run has none; otherwise name the folder that holds config.json or adapter_config.json."
    raise TargetError(what, where=name, remedy=remedy)


def find_weights(folder: Path) -> Path:
    """The folder of an adapter's or a whole model's own files, given that or the run that made it.

    Raises:
        TargetError: there is none.
    """
    if not folder.is_dir():
        raise TargetError("there is no such folder.", where=str(folder), remedy="Name a run or an adapter.")
    return Path(find_target(str(folder)).folder)


def find_adapter(folder: Path) -> Path:
    """The adapter's own folder, given that or the run that made it.

    Raises:
        TargetError: there is no adapter.
    """
    if folder.is_dir() and find_target(str(folder)).kind == "adapter":
        return find_weights(folder)
    raise TargetError("is not an adapter.", where=str(folder), remedy="Name the run or folder of an adapter.")


def _recorded(kind: Literal["adapter", "model"], folder: Path) -> Target:
    record = Record.read(folder)
    return Target(kind, str(folder), record.recipe if record else None)


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
