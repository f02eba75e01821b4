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
from peftkit.hub import Snapshot, cache_place
from peftkit.models.published import find_hub_base
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.references import BUILTIN_PREFIX
from peftkit.recipe.schema import Base, Recipe, Source
from peftkit.storage import free_bytes

__all__ = ["Fetch", "Item", "fetch"]

_Find = Callable[[], tuple[Snapshot, list[str]]]


@dataclass(frozen=True)
class Item:
    """One thing that a recipe names, and where it is."""

    field: str
    """Where the recipe names it."""

    name: str
    origin: Literal["hub", "local", "builtin"]
    """`local` files and folders, and what is `builtin`, need no fetching."""

    commit: str | None = None
    """Of what is from the hub; None where it is not known."""

    folder: str | None = None
    """Where its files are; None for what is builtin, and where it is not known."""

    bytes: int | None = None
    """Of all its files that the recipe needs; None where they are not known, or need no fetching."""

    fetched_bytes: int = 0
    """Of those that were not here before; the small ones that say which the others are do not count."""

    missing: bool = False
    """Whether some of it is still not here."""


@dataclass(frozen=True)
class Fetch:
    """What a recipe needs, and what of it cannot be had."""

    items: list[Item]
    place: str
    """The folder of the hub's cache."""

    fault: RecipeError | None
    """Everything that is missing, and why."""


def fetch(file: RecipeFile) -> Fetch:
    """Bring the base and the data sets that a recipe names, at its revisions; what is here already stays.

    What cannot be had does not keep the rest from being fetched.

    Raises:
        InputError: the disk has no room for it.
    """
    orders = [_Order(item, find) for item, find in _needs(file.recipe)]
    for order in orders:
        order.look()
    _check_room(orders)
    for order in orders:
        order.fill()
    problems = [file.problem(order.fault) for order in orders if order.fault]
    items = [order.item for order in orders]
    return Fetch(items, str(cache_place()), RecipeError(problems) if problems else None)


@dataclass
class _Order:
    """One thing to have on this machine, and how far that has come."""

    item: Item
    find: _Find | None
    """Tells which files it is; None for what needs no fetching."""

    snapshot: Snapshot | None = None
    names: Sequence[str] = ()
    fault: FieldError | None = None

    def look(self) -> None:
        """Find out which files it is, and how large these are."""
        if self.find is None:
            return
        try:
            self.snapshot, self.names = self.find()
        except FieldError as fault:
            self._miss(fault)
            return
        size = sum(self.snapshot.sizes.get(name, 0) for name in self.names)
        commit, folder = self.snapshot.commit, str(self.snapshot.folder)
        self.item = replace(self.item, commit=commit, folder=folder, bytes=size)

    def absent(self) -> dict[Path, int]:
        """The bytes of each file that is not here."""
        found = self.snapshot
        return {found.folder / name: found.sizes.get(name, 0) for name in found.absent(self.names)} if found else {}

    def fill(self) -> None:
        """Download what is not here, and say how much that is before."""
        if self.snapshot is None:
            return
        absent = sum(self.absent().values())
        to_fetch = f"{console.size(absent)} of it to fetch" if absent else "all of it here"
        console.info(f"{self.item.field}, {self.item.name}: {console.size(self.item.bytes or 0)}, {to_fetch}")
        try:
            self.snapshot.bring(self.names)
            self.item = replace(self.item, fetched_bytes=absent)
        except FieldError as fault:
            self._miss(fault)

    def _miss(self, fault: FieldError) -> None:
        self.fault = fault
        self.item = replace(self.item, missing=True)


def _needs(recipe: Recipe) -> Iterator[tuple[Item, _Find | None]]:
    """What a recipe names, the base first."""
    if recipe.base.model:
        yield _model(recipe.base, "base.model", weights=True)
    elif recipe.base.init and recipe.base.init.tokenizer:
        yield _model(Base(model=recipe.base.init.tokenizer), "base.init.tokenizer", weights=False)
    for role, named in (("train", recipe.data.train), ("validation", recipe.data.validation)):
        if isinstance(named, Source):
            yield from _source(named, f"data.{role}")
        elif isinstance(named, list):
            for number, source in enumerate(named):
                yield from _source(source, f"data.{role}.{number}")


def _model(base: Base, field: str, *, weights: bool) -> tuple[Item, _Find | None]:
    item = _item(field, str(base.model))
    return item, partial(find_hub_base, base, field, weights=weights) if item.origin == "hub" else None


def _source(source: Source, field: str) -> Iterator[tuple[Item, _Find | None]]:
    if source.dataset is not None:
        item = _item(f"{field}.dataset", source.dataset)
        yield item, partial(_data_set, source, field) if item.origin == "hub" else None
        return
    for path in [source.path] if isinstance(source.path, str) else source.path or []:
        yield Item(f"{field}.path", path, "local", folder=str(Path(path).parent)), None


def _data_set(source: Source, field: str) -> tuple[Snapshot, list[str]]:
    published = find_published(source, split_of(source, field), field)
    return published.snapshot, published.names


def _item(field: str, name: str) -> Item:
    if name.startswith(BUILTIN_PREFIX):
        return Item(field, name, "builtin")
    return Item(field, name, "local", folder=name) if Path(name).expanduser().is_dir() else Item(field, name, "hub")


def _check_room(orders: Sequence[_Order]) -> None:
    absent: dict[Path, int] = {}
    for order in orders:
        absent |= order.absent()  # a file that two need is fetched once
    place = cache_place().absolute()
    free = free_bytes(place)
    if sum(absent.values()) > free:
        raise InputError(
            f"{console.size(sum(absent.values()))} are to be fetched, but the disk has {console.size(free)} free.",
            where=str(place),
            remedy="Free some, or name a folder on another disk with HF_HOME.",
        )
