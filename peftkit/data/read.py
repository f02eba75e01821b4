"""Rows from files, from the hub, or from peftkit's own grammar."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from peftkit.data import grammar
from peftkit.errors import DataError, FieldError
from peftkit.recipe.schema import Data, Source
from peftkit.storage import sha256_of_file

__all__ = ["BUILTIN", "read_rows", "source_identity"]

BUILTIN = "builtin:grammar"
_LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def read_rows(source: Source, data: Data, field: str) -> Dataset:
    """The rows of a source; `field` is where the recipe names it, `data.train` or `data.validation`.

    Raises:
        FieldError: there is no such file or data set.
        DataError: a file cannot be read, or has no rows.
    """
    if source.path is not None:
        rows = _from_files(_paths(source), data, field)
    elif source.dataset == BUILTIN:
        rows = _from_grammar(source, field)
    else:
        rows = _from_hub(source, field)
    if not len(rows):
        raise DataError("has no rows.", where=_name(source), remedy="Check the file, or the split.")
    return rows.select(range(min(source.limit, len(rows)))) if source.limit else rows


def source_identity(source: Source, rows: Dataset) -> dict[str, Any]:
    """What tells these rows from any others: the files' hashes, or the name and revision of a data set."""
    if source.path is not None:
        files: dict[str, Any] = {str(path): sha256_of_file(path) for path in _paths(source)}
        return {"files": files, "rows": len(rows)}
    named = source.model_dump(include={"dataset", "name", "split", "revision"}, exclude_none=True)
    if source.dataset != BUILTIN:
        named["fingerprint"] = rows._fingerprint
    return {**named, "rows": len(rows)}


def _paths(source: Source) -> list[Path]:
    named = [source.path] if isinstance(source.path, str) else source.path or []
    return [Path(name).expanduser() for name in named]


def _name(source: Source) -> str:
    return ", ".join(str(path) for path in _paths(source)) or str(source.dataset)


def _from_files(paths: list[Path], data: Data, field: str) -> Dataset:
    """Read files of one kind. The library's cache is left out: it can be stale when a file has changed."""
    for path in paths:
        if not path.is_file():
            raise FieldError(f"{field}.path", f"there is no file {path}.", remedy="Check the path.")
        if not path.stat().st_size:
            raise DataError("is empty.", where=str(path), remedy="Give a file with rows.")
    kinds = {path.suffix.lower() for path in paths}
    if len(kinds) != 1 or not kinds <= set(_LOADERS):
        raise FieldError(
            f"{field}.path",
            f"has files of the kinds {', '.join(sorted(kinds))}.",
            remedy=f"Use files of one kind: {', '.join(_LOADERS)}.",
        )
    suffix = kinds.pop()
    options: dict[str, Any] = {}
    if suffix == ".txt":
        options["sample_by"] = data.sample_by
    elif suffix == ".tsv":
        options["sep"] = "\t"
    names = [str(path) for path in paths]
    try:
        with tempfile.TemporaryDirectory() as cache:
            return datasets.load_dataset(
                _LOADERS[suffix], data_files=names, split="train", cache_dir=cache, keep_in_memory=True, **options
            )
    except (ValueError, OSError, RuntimeError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(paths, error) from error


def _unreadable(paths: list[Path], error: Exception) -> DataError:
    """The error of a file that the library could not read, with the line where that can be found."""
    for path in paths:
        if path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
                try:
                    if not isinstance(json.loads(line or "{}"), dict):
                        raise ValueError("it is no object")
                except ValueError as cause:
                    return DataError(
                        f"is not a JSON object: {cause}.", where=f"{path}:{number}", remedy="Mend or remove the line."
                    )
    root: BaseException = error
    while root.__cause__ is not None:  # the library wraps the reason in an error of its own
        root = root.__cause__
    reason = str(root).strip().splitlines()
    return DataError(
        f"cannot be read: {reason[0] if reason else type(root).__name__}",
        where=", ".join(map(str, paths)),
        remedy="Check that its content is what its suffix says.",
    )


def _from_grammar(source: Source, field: str) -> Dataset:
    split: grammar.Split = "validation" if _split(source, field) == "validation" else "train"
    if source.name == "corpus":
        return Dataset.from_dict({"text": grammar.corpus(split)})
    if source.name == "task":
        return Dataset.from_list(grammar.task(split))
    raise FieldError(f"{field}.name", f"{BUILTIN} has no {source.name}.", remedy="Use corpus or task.")


def _from_hub(source: Source, field: str) -> Dataset:
    try:
        return datasets.load_dataset(source.dataset, source.name, split=_split(source, field), revision=source.revision)
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "Check name, split and network, or name a file with path."
        if "scripts are no longer supported" in reason:
            remedy = "Its files need a script, which is never run; try revision: refs/convert/parquet, the hub's copy."
        raise FieldError(f"{field}.dataset", f"{source.dataset} cannot be had: {reason}", remedy=remedy) from error


def _split(source: Source, field: str) -> str:
    return source.split or field.rpartition(".")[2]
