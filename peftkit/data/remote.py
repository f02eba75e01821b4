"""Files by their address: `https://…`, `s3://…`, `gs://…`, `hf://…`, whatever fsspec has a driver for."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import fsspec

from peftkit.errors import FieldError, printable
from peftkit.storage import atomic_folder, cache_folder, sha256_of_file, sha256_of_json

__all__ = ["bring"]

_VERSION_KEYS: Final = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "md5")
"""What drivers say of a file that changes with its content."""


def bring(address: str, field: str) -> Path:
    """The copy of a file in the cache, fetched if there is none of the file as it is now; `field` is the recipe's.

    Raises:
        FieldError: it cannot be reached, or the library for such addresses is not installed.
    """
    try:
        system, path = fsspec.core.url_to_fs(address)
        known: dict[str, Any] = system.info(path)
        version = {name: str(known[name]) for name in _VERSION_KEYS if known.get(name)}
        name = PurePosixPath(urlsplit(address).path).name
        copies = cache_folder() / "remote"
        place = copies / sha256_of_json([address, version])[:32] / name
        if version and place.is_file():
            return place
        with tempfile.TemporaryDirectory() as work:
            fetched = Path(work, name)
            system.get_file(path, str(fetched))
            if not version:  # nothing says whether it has changed, so that its content names it
                place = copies / sha256_of_file(fetched) / name
            if not place.is_file():
                with atomic_folder(place.parent) as folder:
                    shutil.move(fetched, folder / name)
    except ImportError as error:
        what = f"{printable(address)} needs a library that is not installed: {_first_line(error)}."
        raise FieldError(field, what, remedy="Install it, or download the file.") from error
    except Exception as error:  # each driver raises its own library's errors
        what = f"{printable(address)} cannot be fetched: {_first_line(error)}."
        raise FieldError(field, what, remedy="Check the address and the network, or download the file.") from error
    return place


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return printable(text.splitlines()[0].rstrip("."))
