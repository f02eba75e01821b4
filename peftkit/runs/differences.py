"""What has changed of a run: between its start and its resumption, and of its files while it runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit.errors import ChangedError, RunError
from peftkit.recipe.methods import METHODS, sections
from peftkit.runs.manifest import RunManifest
from peftkit.storage import sha256_of_file

__all__ = ["Difference", "Inputs", "act_on_optimizer", "check_differences", "input_differences", "recipe_differences"]

_HARMLESS = ("output", "description", "generation", "expect")
"""What has no part in training."""
_FIXED = ("method", "base.init", "training.optim", *sections())
"""What the state of a run is made of: with another of these, its checkpoints do not fit."""
_NOT_FIXED = tuple(f"{traits.section}.{name}" for traits in METHODS.values() for name in traits.mutable)
_SEEDS = ("training.seed", "training.data_seed")
_LONGEST = 60
_DIGITS = 12  # of a hash, enough to tell two apart


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was."""

    field: str
    """Dotted path in the recipe, or what else it is: `data.train`, `base`, `versions.torch`, `world_size`."""

    before: str
    now: str

    @property
    def fixed(self) -> bool:
        """Whether a run cannot be resumed with it at all."""
        return _within(self.field, _FIXED) and not _within(self.field, _NOT_FIXED)

    def __str__(self) -> str:
        return f"{self.field}: was {self.before}, is {self.now}."


def recipe_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The fields in which two resolved recipes differ.

    A format that was recognised stands in the one, and `auto` perhaps in the other: that is no difference.
    """
    data = now.get("data")
    if isinstance(data, Mapping) and data.get("format") == "auto" and isinstance(before.get("data"), Mapping):
        now = {**now, "data": {**data, "format": before["data"].get("format")}}
    return [each for each in _differences(before, now, "") if not _within(each.field, _HARMLESS)]


def input_differences(before: RunManifest, now: RunManifest) -> list[Difference]:
    """What differs in the contents of data and base, in versions, number type and number of processes."""
    one, other = (
        {
            "data": {part: _contents(manifest.data.get(part)) for part in ("train", "validation")},
            "base": _hashes(manifest.base),
            **{name: getattr(manifest, name) for name in ("versions", "precision", "world_size")},
        }
        for manifest in (before, now)
    )
    return list(_differences(one, other, ""))


def check_differences(found: Sequence[Difference], allowed: Collection[str], where: str) -> None:
    """See that everything that differs may; `allowed` are fields, or sections with all that is in them.

    Raises:
        ChangedError: something may not, or cannot.
    """
    refused = [each for each in found if each.fixed or not _within(each.field, allowed)]
    if not refused:
        return
    fixed = sorted({each.field for each in refused if each.fixed})
    if fixed:
        remedy = (
            f"A run cannot be resumed with another {', '.join(fixed)}: put it back, or start a run in another --output."
        )
    else:
        fields = ",".join(sorted({each.field for each in refused}))
        remedy = f"Put back what was, or resume with --allow-changes {fields}"
    raise ChangedError([str(each) for each in refused], where=where, remedy=remedy)


def act_on_optimizer(changes: Sequence[Difference]) -> bool:
    """Whether changes are of hyperparameters that the saved state of optimizer and schedule has copies of."""
    return any(_within(each.field, ("training",)) and each.field not in _SEEDS for each in changes)


def _within(field: str, sections: Collection[str]) -> bool:
    return any(field == section or field.startswith(f"{section}.") for section in sections)


def _differences(before: Any, now: Any, field: str) -> Iterator[Difference]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(name), now.get(name), f"{field}.{name}" if field else str(name))
    elif before != now:
        yield Difference(field, _shown(before), _shown(now))


def _contents(data: Any) -> Any:
    """What tells data from other data: a file's path is in the recipe, so here it is its content alone that counts."""
    if not isinstance(data, Mapping):
        return data
    if "sources" in data:
        return {str(number): _contents(source) for number, source in enumerate(data["sources"])}
    if "files" in data:
        files = {str(path).rpartition("/")[2]: _digest(sha256) for path, sha256 in data["files"].items()}
        return files | {name: data[name] for name in ("bytes",) if name in data}  # of a stream
    named = {name: data[name] for name in ("dataset", "name", "revision", "split") if name in data}
    return named | {name: _digest(data[name]) for name in ("sha256", "fingerprint") if name in data}


def _hashes(base: Mapping[str, Any]) -> dict[str, Any]:
    """The base's files, by name; where these are not known, its fingerprint."""
    files = base.get("files") or {"sha256": base.get("sha256")}
    return {name: _digest(sha256) for name, sha256 in files.items()}


def _digest(sha256: Any) -> Any:
    return f"sha256 {sha256[:_DIGITS]}" if isinstance(sha256, str) else sha256


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


@dataclass(frozen=True)
class Inputs:
    """Data and base files as they were when the run began.

    A run computes with what it read then. It stops where that is no longer on the disk, because it could then be
    neither resumed after a fault, nor reproduced, nor merged.
    """

    hashes: Mapping[Path, str | None]
    """SHA-256 of each; None where a stream is read without looking at all of it first."""

    marks: Mapping[Path, tuple[int, int, int]]

    @classmethod
    def of(cls, base: Mapping[str, Any], base_folder: Path | None, data: Mapping[str, Any]) -> Inputs:
        """The files in the records of a base, which is in a folder, and of the data."""
        hashes: dict[Path, str | None] = {}
        if base_folder is not None:
            hashes |= {base_folder / name: sha256 for name, sha256 in base["files"].items()}
        for part in data.values():
            for source in (part or {}).get("sources", [part] if part else []):
                hashes |= {Path(name): sha256 for name, sha256 in source.get("files", {}).items()}
        return cls(hashes, {path: mark for path in hashes if (mark := _mark(path))})

    def check(self) -> None:
        """Check that every file has the content that it had; another time alone is no change.

        Raises:
            RunError: one has changed, or is gone.
        """
        for path, mark in self.marks.items():
            now = _mark(path)
            if now == mark:
                continue
            sha256 = self.hashes[path]
            if now is None or sha256 is None or sha256_of_file(path) != sha256:
                what = f"was {'removed' if now is None else 'changed'} while training."
                raise RunError(what, where=str(path), remedy="Put it back as it was, and resume with --resume.")


def _mark(path: Path) -> tuple[int, int, int] | None:
    """Size, time and number of a file, one of which changes with its content; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
