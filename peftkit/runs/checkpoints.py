"""The checkpoints of a run: which there are, which can be trusted, and which are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from peftkit.storage import manifest_faults, read_json, remove_folder

__all__ = ["PROGRESS_NAME", "Checkpoint", "checkpoint_place", "find_checkpoints", "newest_sound", "rotate", "set_aside"]

PROGRESS_NAME = "progress.json"
"""The file of a checkpoint that says which run it belongs to and how far that was."""

_NAME = re.compile(r"step-(\d+)")
_ASIDE = ".damaged"


@dataclass(frozen=True)
class Checkpoint:
    """A folder that is called as a checkpoint is."""

    step: int
    path: Path

    def faults(self, run_id: str) -> list[str]:
        """Why a run must not go on from it; nothing where every file is as it was written."""
        faults = manifest_faults(self.path)
        if faults is None:
            return ["manifest.json is missing or damaged"]
        if not faults and not self.belongs_to(run_id):
            return ["it belongs to another run"]
        return faults

    def belongs_to(self, run_id: str) -> bool:
        """Whether this run wrote it."""
        try:
            return bool(read_json(self.path / PROGRESS_NAME)["run_id"] == run_id)
        except (OSError, ValueError, KeyError, TypeError):
            return False


def checkpoint_place(folder: Path, step: int) -> Path:
    """Where the checkpoint after a number of optimizer steps belongs."""
    return folder / f"step-{step}"


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """Every checkpoint in a folder, the newest first, sound or not."""
    named = [(match, path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    found = [Checkpoint(int(match[1]), path) for match, path in named if path.is_dir()]
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def newest_sound(folder: Path, run_id: str) -> tuple[Checkpoint | None, list[tuple[Checkpoint, list[str]]]]:
    """The newest checkpoint that verifies, and the newer ones that do not, each with its faults."""
    passed_over: list[tuple[Checkpoint, list[str]]] = []
    for checkpoint in find_checkpoints(folder):
        faults = checkpoint.faults(run_id)
        if not faults:
            return checkpoint, passed_over
        passed_over.append((checkpoint, faults))
    return None, passed_over


def set_aside(checkpoint: Checkpoint) -> Path:
    """Make room where a checkpoint that does not verify stands; it is kept, for whoever wants to look at it."""
    number = 1
    while (place := checkpoint.path.with_name(f"{checkpoint.path.name}{_ASIDE}-{number}")).exists():
        number += 1
    checkpoint.path.rename(place)
    return place


def rotate(folder: Path, run_id: str, keep: int | None, best: int | None) -> list[Checkpoint]:
    """Remove this run's oldest checkpoints beyond `keep`, and name them; never the one after step `best`.

    What another run or a person put there is not counted and not touched.
    """
    if keep is None:
        return []
    own = [checkpoint for checkpoint in find_checkpoints(folder) if checkpoint.belongs_to(run_id)]
    old = [checkpoint for checkpoint in own[keep:] if checkpoint.step != best and not checkpoint.path.is_symlink()]
    for checkpoint in old:
        remove_folder(checkpoint.path)
    return old
