"""Files that are either whole or not there.

A folder is written beside its place under a hidden name, synced to the disk, given a manifest of sizes and hashes as
its last file, and renamed. Whoever finds it under its own name finds all of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from peftkit.errors import RunError

__all__ = [
    "FULL", "MANIFEST_NAME", "append_json_line", "atomic_folder", "cache_folder", "complete_folder", "file_fault",
    "folder_hashes", "free_bytes", "is_free", "is_full", "manifest_faults", "new_part", "read_json", "remove_folder",
    "remove_parts", "sha256_of_file", "sha256_of_json", "sync_files", "write_fault", "write_json", "write_text",
]  # fmt: skip

MANIFEST_NAME = "manifest.json"
_CHUNK_BYTES = 1 << 20
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")
FULL = "the disk is full, or a limit on the size of files is reached."
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FAULTS = {
    **dict.fromkeys(_FULL, FULL),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "cannot be written: the folder or its disk is read-only for this user.",
    ),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.ESTALE),
        "is no longer there: a folder was removed or moved while it was in use.",
    ),
    errno.EIO: "the disk failed to read or write.",
}
"""What errors of the system mean to a user who writes."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors tells an error of the system


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
        wanted = {str(name): (str(entry["sha256"]), int(entry["bytes"])) for name, entry in files.items()}
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError):
        return None
    checked = {name: known for name, known in wanted.items() if name not in editable}
    return [fault for name, known in checked.items() if (fault := file_fault(folder, name, *known))]


def file_fault(folder: Path, name: str, sha256: str, size: int | None = None) -> str | None:
    """How a file below a folder differs from what it was; a name that leads out of the folder is never opened."""
    place = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{name} is no file below it"
    try:
        if not place.is_file():
            return f"{name} is missing"
        found = place.stat().st_size
        if size is not None and found != size:
            return f"{name} has changed: {found:,} bytes instead of {size:,}"
        return None if sha256_of_file(place) == sha256 else f"{name} has changed"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"


def read_json(path: Path) -> Any:
    """The JSON value in a UTF-8 file.

    Raises:
        ValueError: it is not JSON, or is nested deeper than Python reads.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part of it."""
    part = _part_of(path)
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
    """Add one line to a JSON Lines file: the whole of it, or, where that fails, nothing."""
    line = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        length = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(length)
            raise


def free_bytes(folder: Path) -> int:
    """Bytes that can be written to the disk of a folder, which may not be there yet."""
    place = folder.absolute()
    return shutil.disk_usage(next(each for each in (place, *place.parents) if each.is_dir())).free


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
    part = new_part(place)
    try:
        yield part
        complete_folder(part, place, known)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def new_part(place: Path) -> Path:
    """A new empty folder beside a place, under a hidden name, for what will stand there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(place)
    part.mkdir()
    return part


def complete_folder(part: Path, place: Path, known: Mapping[str, str] | None = None) -> None:
    """Give what was written into a part the umask's modes and, last, its manifest; sync it, and put it at its place."""
    umask = os.umask(0o022)
    os.umask(umask)
    for path in sorted(part.rglob("*")):
        if path.is_file():
            path.chmod(0o666 & ~umask)  # safetensors creates files with mode 0600; a shared folder wants the umask's
    sync_files(part)
    hashes = folder_hashes(part, known)
    files = {name: {"bytes": (part / name).stat().st_size, "sha256": digest} for name, digest in hashes.items()}
    write_json(part / MANIFEST_NAME, {"files": files})
    part.replace(place)
    _sync(place.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is either whole at its place or not there, even if this is cut short."""
    part = _part_of(folder)
    folder.replace(part)
    shutil.rmtree(part)


def remove_parts(folder: Path) -> list[str]:
    """Remove what a process that was killed left unfinished directly in a folder, and name it.

    Only who holds the folder's lock may do so: another process could still be writing.
    """
    left = [path for path in sorted(folder.glob(".*.part")) if _PART.fullmatch(path.name)]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [path.name for path in left]


def write_fault(error: BaseException, place: Path) -> RunError | None:
    """What an error of the system says to a user about writing below a place; None for any other error."""
    what = _FAULTS.get(_error_number(error) or 0)
    return RunError(what, where=str(getattr(error, "filename", None) or place)) if what else None


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk has no room left, wherever that was."""
    return _error_number(error) in _FULL


def _error_number(error: BaseException) -> int | None:
    """The system's number of an error, whichever library tells of it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    told = _OS_ERROR.search(str(error))
    return int(told[1]) if told else None


def _part_of(place: Path) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")


def sync_files(folder: Path) -> None:
    """Ask the system to put every file below a folder on the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _sync(path)


def _sync(path: Path) -> None:
    """Ask the system to put a file or a folder's entries on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
