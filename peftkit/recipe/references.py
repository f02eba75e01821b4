"""Whether what a recipe names is there, as far as that can be seen without opening it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from peftkit.errors import FieldError, printable

__all__ = ["BUILTIN_PREFIX", "COMPRESSIONS", "DATA_SUFFIXES", "data_suffix", "is_folder", "reference_errors"]

DATA_SUFFIXES = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Files that data can be read from."""

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
"""What may follow such a suffix."""

_ASSETS = Path(__file__).resolve().parents[1] / "assets"
BUILTIN_PREFIX = "builtin:"
"""What a name of something that is part of peftkit begins with."""

_BUILTIN_DATA = ("builtin:grammar",)
_RELATIVE = "Paths are relative to the recipe's folder; those of --set to the working directory."


def reference_errors(values: dict[str, Any]) -> Iterator[FieldError]:
    """What is named in a recipe's values, paths already absolute, and is not there."""
    for role in ("train", "validation"):
        named = _at(values, "data", role)
        for index, source in enumerate(named if isinstance(named, list) else [named]):
            if isinstance(source, dict):
                field = f"data.{role}.{index}" if isinstance(named, list) else f"data.{role}"
                yield from _source_errors(source, field)
    for section, name in (("base", "model"), ("base.init", "tokenizer")):
        model = _at(values, *section.split("."), name)
        if isinstance(model, str):
            yield from _model_errors(model, f"{section}.{name}")
            if _at(values, *section.split("."), "revision") and model.startswith((BUILTIN_PREFIX, "/")):
                what = "cannot act on a base that is no hub model."
                yield FieldError(f"{section}.revision", what, remedy="Remove it.")


def data_suffix(name: str) -> str | None:
    """What a file holds, by its name without what says how it is compressed; None for what data is not read from."""
    path = Path(urlsplit(name).path if "://" in name else name)
    path = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    suffix = path.suffix.lower()
    return suffix if suffix in DATA_SUFFIXES else None


def is_folder(path: Path) -> bool:
    """Whether there is a folder, as far as this user can see."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _at(values: Any, *path: str) -> Any:
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _source_errors(source: dict[str, Any], field: str) -> Iterator[FieldError]:
    named = source.get("path")
    for name in [named] if isinstance(named, str) else named if isinstance(named, list) else []:
        if not isinstance(name, str):
            continue
        wrong = _wrong_with_file(Path(name))
        if wrong:
            yield FieldError(f"{field}.path", wrong, remedy=_RELATIVE)
        elif data_suffix(name) is None:
            yield FieldError(
                f"{field}.path",
                f"{printable(Path(name).name)} is of no kind that can be read.",
                remedy=f"Use {', '.join(DATA_SUFFIXES)}, perhaps with {', '.join(COMPRESSIONS)}.",
            )
    dataset = source.get("dataset")
    if isinstance(dataset, str) and dataset.startswith(BUILTIN_PREFIX) and dataset not in _BUILTIN_DATA:
        remedy = f"Use {', '.join(_BUILTIN_DATA)}."
        yield FieldError(f"{field}.dataset", f"there is no {printable(dataset)}.", remedy=remedy)


def _wrong_with_file(path: Path) -> str | None:
    name = printable(str(path))
    try:
        if path.is_file():
            return None
        if path.is_dir():
            return f"{name} is a folder, not a file."
        return f"{name} is not a regular file." if path.exists() else f"there is no file {name}."
    except OSError as error:  # a name that is too long, or in a folder that this user cannot enter
        return f"{name} cannot be read: {error.strerror}."


def _model_errors(model: str, field: str) -> Iterator[FieldError]:
    if model.startswith(BUILTIN_PREFIX):
        names = sorted(f"{BUILTIN_PREFIX}{path.parent.name}" for path in _ASSETS.glob("*/config.json"))
        if model not in names:
            remedy = f"There are: {', '.join(names) or 'none'}."
            yield FieldError(field, f"there is no {printable(model)}.", remedy=remedy)
    elif model.startswith("/") and not is_folder(Path(model)):
        yield FieldError(field, f"there is no folder {printable(model)}.", remedy=_RELATIVE)
