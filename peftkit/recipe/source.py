"""The text of a file that a user wrote."""

from __future__ import annotations

from pathlib import Path

from peftkit.errors import InputError

__all__ = ["read_source"]

_LARGEST_FILE = 1 << 18
"""Bytes: room for some thousand paths of data files; beyond it, reading YAML takes minutes."""


def read_source(path: Path, kind: str, missing: str) -> str:
    """Read a YAML file, with lines that end in a line feed.

    Args:
        path: the file.
        kind: what it should be: `recipe`, `study`.
        missing: what to do where there is none.

    Raises:
        InputError: there is none, or it cannot be one.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        text = content.decode()
    except FileNotFoundError as error:
        raise InputError(f"there is no such {kind}.", where=str(path), remedy=missing) from error
    except IsADirectoryError as error:
        remedy = "Name the YAML file in it."
        raise InputError(f"is a folder, not a {kind}.", where=str(path), remedy=remedy) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError("is not UTF-8 text.", where=f"{path}:{line}", remedy="Save the file in UTF-8.") from error
    except OSError as error:
        raise InputError(f"cannot be read: {error}.", where=str(path), remedy="Name a file that can be.") from error
    if len(content) > _LARGEST_FILE:
        what = f"is no {kind}: it has more than {_LARGEST_FILE:,} bytes."
        raise InputError(what, where=str(path), remedy=f"Name the YAML file of a {kind}.")
    return text.replace("\r\n", "\n").replace("\r", "\n")
