"""Where rows come from: files, the hub, or peftkit's own grammar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from peftkit.data import grammar
from peftkit.data.files import Row, count_lines, file_rows
from peftkit.errors import FieldError
from peftkit.recipe.references import DATA_SUFFIXES
from peftkit.recipe.schema import Data, Source
from peftkit.storage import sha256_of_file

__all__ = ["BUILTIN", "Rows", "open_rows", "split_of"]

BUILTIN = "builtin:grammar"
_GRAMMAR = Path(grammar.__file__)


@dataclass(frozen=True)
class Rows:
    """The rows of one source, read anew each time they are gone through."""

    name: str
    """What errors call the source."""

    identity: dict[str, Any]
    """What tells these rows from any others: the files' hashes, or the name and commit of a data set."""

    total: int | None
    """About how many rows there are."""

    _read: Callable[[], Iterable[Row]]
    _limit: int | None

    def __iter__(self) -> Iterator[Row]:
        return islice(self._read(), None if self._limit is None else min(self._limit, sys.maxsize))


def open_rows(source: Source, data: Data, field: str, *, streaming: bool = False) -> Rows:
    """Find a source; `field` is where the recipe names it, as `data.train`. A stream is not hashed.

    Raises:
        FieldError: there is no such file or data set.
    """
    if source.path is not None:
        return _from_files(source, data, field, streaming)
    if source.dataset == BUILTIN:
        return _from_grammar(source, field)
    return _from_dataset(source, field, streaming)


def _from_files(source: Source, data: Data, field: str, streaming: bool) -> Rows:
    named = [source.path] if isinstance(source.path, str) else source.path or []
    paths = [Path(name).expanduser() for name in named]
    for path in paths:
        if not path.is_file():
            raise FieldError(f"{field}.path", f"there is no file {path}.", remedy="Check the path.")
        if path.suffix.lower() not in DATA_SUFFIXES:
            remedy = f"Use {', '.join(DATA_SUFFIXES)}."
            raise FieldError(f"{field}.path", f"{path.name} is of no kind that can be read.", remedy=remedy)
    by_line = not streaming and all(path.suffix.lower() not in (".json", ".parquet") for path in paths)
    hashes = {str(path): None if streaming else sha256_of_file(path) for path in paths}
    return Rows(
        name=", ".join(str(path) for path in paths),
        identity={"files": hashes} | ({"bytes": sum(path.stat().st_size for path in paths)} if streaming else {}),
        total=_at_most(sum(count_lines(path) for path in paths), source.limit) if by_line else source.limit,
        _read=lambda: (row for path in paths for row in file_rows(path, data)),
        _limit=source.limit,
    )


def _from_grammar(source: Source, field: str) -> Rows:
    split: grammar.Split = "validation" if split_of(source, field) == "validation" else "train"
    identity = {"dataset": BUILTIN, "name": source.name, "split": split, "sha256": sha256_of_file(_GRAMMAR)}
    if source.name == "corpus":
        return _listed(
            source, identity, grammar.DOCUMENTS[split], lambda: ({"text": text} for text in grammar.corpus(split))
        )
    if source.name == "task":
        return _listed(source, identity, grammar.ROWS[split], lambda: grammar.task(split))
    raise FieldError(f"{field}.name", f"{BUILTIN} has no {source.name}.", remedy="Use corpus or task.")


def _from_dataset(source: Source, field: str, streaming: bool) -> Rows:
    import datasets  # takes a second, and files do without

    from peftkit.data.published import LIBRARY_ERRORS, find_published, unreadable

    split = split_of(source, field)
    identity: dict[str, Any] = {"dataset": source.dataset, "name": source.name, "split": split}
    try:
        if Path(str(source.dataset)).is_dir():
            found: Any = datasets.load_dataset(source.dataset, source.name, split=split, streaming=streaming)
            identity |= {} if streaming else {"fingerprint": found._fingerprint}
        else:
            published = find_published(source, split, field)
            found = published.open(streaming=streaming)
            identity["revision"] = published.snapshot.commit
    except LIBRARY_ERRORS as error:
        raise unreadable(str(source.dataset), f"{field}.dataset", error) from error
    identity = {name: value for name, value in identity.items() if value is not None}
    return _listed(source, identity, None if streaming else len(found), lambda: found)


def _listed(
    source: Source, identity: dict[str, Any], total: int | None, values: Callable[[], Iterable[dict[str, Any]]]
) -> Rows:
    """Rows that have a number instead of a line."""
    name = ", ".join(str(part) for part in (source.dataset, source.name, identity["split"]) if part)
    return Rows(
        name=name,
        identity=identity,
        total=_at_most(total, source.limit),
        _read=lambda: (Row(f"{name}, row {number}", value) for number, value in enumerate(values(), start=1)),
        _limit=source.limit,
    )


def _at_most(total: int | None, limit: int | None) -> int | None:
    return total if limit is None else min(limit, total) if total is not None else limit


def split_of(source: Source, field: str) -> str:
    """The split that is named, or else the one that the field is for."""
    return source.split or ("validation" if field.startswith("data.validation") else "train")
