"""Files that are either whole or not there.

A folder is written beside its place under a hidden name, synced to the disk, given a manifest of sizes and hashes as
its last file, and renamed. Whoever finds it under its own name finds all of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from peftkit.errors import RunError

__all__ = [
    "MANIFEST_NAME",
    "append_json_line",
    "atomic_folder",
    "cache_folder",
    "folder_hashes",
    "is_free",
    "manifest_faults",
    "read_json",
    "sha256_of_file",
    "sha256_of_json",
    "sync_files",
    "write_json",
    "write_text",
]

MANIFEST_NAME = "manifest.json"
_CHUNK_BYTES = 1 << 20


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value, the same for equal values whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def folder_hashes(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by POSIX path relative to it, in sorted order.

    `known` are those that need not be read again.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: (known or {}).get(name) or sha256_of_file(path) for name, path in files.items()}


def manifest_faults(folder: Path, *, editable: Collection[str] = ()) -> list[str] | None:
    """How a folder's files differ from its `manifest.json`; None where it has none, or one of another kind.

    Files that the manifest does not name are no fault, people add them; nor are changes in `editable` ones.
    """
    try:
        files = read_json(folder / MANIFEST_NAME)["files"]
        wanted = {str(name): str(entry["sha256"]) for name, entry in files.items() if name not in editable}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    faults = []
    for name, digest in wanted.items():
        if not (folder / name).is_file():
            faults.append(f"{name} is missing")
        elif sha256_of_file(folder / name) != digest:
            faults.append(f"{name} has changed")
    return faults


def read_json(path: Path) -> Any:
    """The JSON value in a UTF-8 file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part of it."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document in one step; a NaN in it raises ValueError, because JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_json_line(path: Path, value: Any) -> None:
    """Add one line to a JSON Lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def is_free(place: Path) -> bool:
    """Whether nothing is at a place, or an empty folder."""
    return not place.exists() or (place.is_dir() and not any(place.iterdir()))


def cache_folder() -> Path:
    """Where peftkit keeps what it can make again: `PEFTKIT_CACHE`, or a folder among the user's caches."""
    named = os.environ.get("PEFTKIT_CACHE")
    if named:
        return Path(named).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "peftkit"


@contextlib.contextmanager
def atomic_folder(place: Path, known: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Give a new folder to write into; it appears at `place`, whole and synced, when the block ends well.

    The folder gets a `manifest.json` with the size and SHA-256 of each file; those that the block puts into `known`
    are not computed again. If the block raises, nothing is left.

    Raises:
        RunError: `place` exists and is not an empty folder.
    """
    if not is_free(place):
        raise RunError("exists already and is not empty.", where=str(place), remedy="Choose another output folder.")
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        yield part
        _finish_folder(part, known)
        part.replace(place)
        _sync(place.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sync_files(folder: Path) -> None:
    """Ask the system to put every file below a folder on the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _sync(path)


def _finish_folder(folder: Path, known: Mapping[str, str] | None) -> None:
    """Set modes by the umask, sync every file, and write the manifest last."""
    mode = 0o666 & ~_current_umask()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(mode)  # safetensors creates its files with mode 0600; a shared model folder wants the umask's
    sync_files(folder)
    hashes = folder_hashes(folder, known)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": digest} for name, digest in hashes.items()}
    write_json(folder / MANIFEST_NAME, {"files": files})


def _current_umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


def _sync(path: Path) -> None:
    """Ask the system to put a file or a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
