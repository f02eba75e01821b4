"""What a command's TARGET is, told by what is in the folder: a run, an adapter, a merged model or a base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftkit.adapters.files import CONFIG_NAME
from peftkit.adapters.record import Record
from peftkit.errors import TargetError
from peftkit.recipe.schema import Recipe

__all__ = ["Target", "find_adapter", "find_target", "find_weights"]


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
    raise TargetError(
        "holds neither a run, an adapter nor a model.",
        where=name,
        remedy="An unfinished run has none; otherwise name the folder that holds config.json or adapter_config.json.",
    )


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
