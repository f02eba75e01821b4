"""The files that a run is made of, watched while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit.errors import RunError
from peftkit.storage import sha256_of_file

__all__ = ["Inputs"]

_Mark = tuple[int, int, int]


@dataclass(frozen=True)
class Inputs:
    """Data and base files as they were when the run began.

    A run computes with what it read then. It stops where that is no longer on the disk, because it could be neither
    gone on with after a fault, nor made again, nor merged.
    """

    hashes: Mapping[Path, str | None]
    """SHA-256 of each; None where a stream is read without looking at all of it first."""

    marks: Mapping[Path, _Mark]

    @classmethod
    def of(cls, base: Mapping[str, Any], base_folder: Path | None, data: Mapping[str, Any]) -> Inputs:
        """What the records of a base, in its folder, and of the data name."""
        hashes: dict[Path, str | None] = {}
        if base_folder is not None:
            hashes |= {base_folder / name: sha256 for name, sha256 in base["files"].items()}
        for part in data.values():
            for source in (part or {}).get("sources", [part] if part else []):
                hashes |= {Path(name): sha256 for name, sha256 in source.get("files", {}).items()}
        return cls(hashes, {path: mark for path in hashes if (mark := _mark(path))})

    def check(self) -> None:
        """See that every file is what it was. A file with another time but the same content is.

        Raises:
            RunError: one is not.
        """
        for path, mark in self.marks.items():
            now = _mark(path)
            if now == mark:
                continue
            sha256 = self.hashes[path]
            if now is None or sha256 is None or sha256_of_file(path) != sha256:
                raise RunError(
                    f"was {'removed' if now is None else 'changed'} while training.",
                    where=str(path),
                    remedy="Put it back as it was, and go on with --resume.",
                )


def _mark(path: Path) -> _Mark | None:
    """Size, time and number of a file: another content has another one of these."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
