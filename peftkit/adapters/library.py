"""The adapters below a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peftkit.adapters.files import CONFIG_NAME, Adapter, read_adapter
from peftkit.adapters.lora import kinds_of, meaning_of
from peftkit.errors import TargetError
from peftkit.runs.folder import ADAPTER_FOLDER

__all__ = ["Listing", "list_adapters"]


@dataclass(frozen=True)
class Listing:
    """One adapter in a few words; None is what is not known."""

    adapter: str
    base: str | None
    method: str | None
    ranks: list[int]
    """The ranks of its modules, each once."""

    targets: list[str]
    """Names of its modules inside their layers, each once."""

    bytes: int
    perplexity: float | None
    base_perplexity: float | None
    fault: str | None
    """Why it cannot be used."""


def list_adapters(folder: Path) -> list[Listing]:
    """Every adapter in a folder and below it, by path; hidden folders are left out.

    Raises:
        TargetError: there is no such folder.
    """
    if not folder.is_dir():
        raise TargetError("there is no such folder.", where=str(folder))
    return [_listing(place, folder) for place in _places(folder)]


def _places(folder: Path) -> Iterator[Path]:
    for config in sorted(folder.rglob(CONFIG_NAME)):
        if not any(part.startswith(".") for part in config.relative_to(folder).parts):
            yield config.parent


def _listing(place: Path, folder: Path) -> Listing:
    named = place.parent if place.name == ADAPTER_FOLDER and place != folder else place  # a run goes by its own name
    name = str(named)
    try:
        adapter = read_adapter(place)
        return _described(name, adapter)
    except TargetError as error:
        return Listing(name, None, None, [], [], 0, None, None, error.what)


def _described(name: str, adapter: Adapter) -> Listing:
    meaning, record = meaning_of(adapter), adapter.record
    metrics = record.metrics if record else {}
    return Listing(
        adapter=name,
        base=record.base["model"] if record else adapter.config.get("base_model_name_or_path"),
        method=record.recipe.method if record else None,
        ranks=sorted({factors.rank for factors in meaning.factors.values()}),
        targets=kinds_of(meaning.factors),
        bytes=adapter.bytes,
        perplexity=metrics.get("perplexity"),
        base_perplexity=metrics.get("base_perplexity"),
        fault=None,
    )
