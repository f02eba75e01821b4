"""All that a recipe needs of the hub, brought to this machine, so that it trains without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from peftkit import console
from peftkit.data.published import find_published
from peftkit.data.sources import split_of
from peftkit.errors import FieldError, InputError, RecipeError
from peftkit.hub import Repo, Snapshot, cache_place, find_base
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.references import BUILTIN_PREFIX
from peftkit.recipe.schema import Base, Recipe, Source
from peftkit.storage import free_bytes

__all__ = ["Item", "fetch"]

_Find = Callable[[], tuple[Snapshot, list[str]]]


@dataclass(frozen=True)
class Item:
    """One thing that a recipe names, and where it is."""

    field: str  # where the recipe names it
    name: str
    origin: Literal["hub", "local", "builtin"]  # `local` files and folders, and what is `builtin`, need no fetching.
    commit: str | None = None  # of what is from the hub; None where it is not known
    folder: str | None = None  # where its files are; None for what is builtin, and where it is not known
    bytes: int | None = None
    """Of all its files that the recipe needs; None where they are not known, or need no fetching."""

    fetched_bytes: int = 0
    """Of those that were not here before; the small ones that say which the others are do not count."""

    missing: bool = False  # whether some of it is still not here


@dataclass(frozen=True)
class _Found:
    """Which files an item is; `snapshot` is None where nothing is to be fetched."""

    item: Item
    snapshot: Snapshot | None = None
    names: Sequence[str] = ()
    fault: FieldError | None = None

    @property
    def absent(self) -> dict[Path, int]:
        """The bytes of each file that is not on this machine."""
        found = self.snapshot
        return {found.folder / name: found.sizes.get(name, 0) for name in found.absent(self.names)} if found else {}


def fetch(file: RecipeFile) -> tuple[list[Item], RecipeError | None]:
    """Download the base and the data sets that a recipe names, at its revisions; files that are here already stay.

    An item that is not available does not keep the others from being fetched.

    Returns:
        What the recipe needs, and why some of it is missing, if so.

    Raises:
        InputError: the disk has no room for it.
    """
    found = [_located(item, find) for item, find in _needs(file.recipe)]
    _check_room(found)
    fetched = [_filled(each) for each in found]
    problems = [file.problem(each.fault) for each in fetched if each.fault]
    return [each.item for each in fetched], RecipeError(problems) if problems else None


def _located(item: Item, find: _Find | None) -> _Found:
    """Find out which files an item is, and how large these are."""
    if find is None:
        return _Found(item)
    try:
        snapshot, names = find()
    except FieldError as fault:
        return _Found(replace(item, missing=True), fault=fault)
    size = sum(snapshot.sizes.get(name, 0) for name in names)
    return _Found(replace(item, commit=snapshot.commit, folder=str(snapshot.folder), bytes=size), snapshot, names)


def _filled(found: _Found) -> _Found:
    """Download the files that are not here, after a message on how much that is."""
    item, absent = found.item, sum(found.absent.values())
    if found.snapshot is None:
        return found
    to_fetch = f"{console.size(absent)} of it to fetch" if absent else "all of it here"
    console.info(f"{item.field}, {item.name}: {console.size(item.bytes or 0)}, {to_fetch}")
    try:
        found.snapshot.bring(found.names)
    except FieldError as fault:
        return replace(found, item=replace(item, missing=True), fault=fault)
    return replace(found, item=replace(item, fetched_bytes=absent))


def _needs(recipe: Recipe) -> Iterator[tuple[Item, _Find | None]]:
    """What a recipe names, the base first."""
    if recipe.base.model:
        yield _model(recipe.base, "base.model", weights=True)
    elif recipe.base.init and recipe.base.init.tokenizer:
        yield _model(Base(model=recipe.base.init.tokenizer), "base.init.tokenizer", weights=False)
    for role, named in (("train", recipe.data.train), ("validation", recipe.data.validation)):
        if isinstance(named, Source):
            yield from _source(named, f"data.{role}")
        for number, source in enumerate(named if isinstance(named, list) else ()):
            yield from _source(source, f"data.{role}.{number}")


def _model(base: Base, field: str, *, weights: bool) -> tuple[Item, _Find | None]:
    item, repo = _item(field, str(base.model)), Repo("model", str(base.model), base.revision, field)
    return item, partial(find_base, repo, weights=weights) if item.origin == "hub" else None


def _source(source: Source, field: str) -> Iterator[tuple[Item, _Find | None]]:
    if source.dataset is not None:

        def find() -> tuple[Snapshot, list[str]]:
            published = find_published(source, split_of(source, field), field)
            return published.snapshot, published.names

        item = _item(f"{field}.dataset", source.dataset)
        yield item, find if item.origin == "hub" else None
        return
    for path in [source.path] if isinstance(source.path, str) else source.path or []:
        yield Item(f"{field}.path", path, "local", folder=str(Path(path).parent)), None


def _item(field: str, name: str) -> Item:
    if name.startswith(BUILTIN_PREFIX):
        return Item(field, name, "builtin")
    return Item(field, name, "local", folder=name) if Path(name).expanduser().is_dir() else Item(field, name, "hub")


def _check_room(items: Sequence[_Found]) -> None:
    absent = dict(pair for found in items for pair in found.absent.items())  # a file that two need is fetched once
    place, needed = cache_place().absolute(), sum(absent.values())
    if needed > (free := free_bytes(place)):
        what = f"{console.size(needed)} are to be fetched, but the disk has {console.size(free)} free."
        remedy = "Free some, or name a folder on another disk with HF_HOME."
        raise InputError(what, where=str(place), remedy=remedy)
