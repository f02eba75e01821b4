"""A data set of the hub: which of its files are a configuration's and a split's, and how they are read.

The files are read from the hub's cache, at the commit that was asked for, with or without a network. The library's own
way is not taken: without a network it finds only what it has prepared before, whatever the revision.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from peftkit.errors import FieldError, first_line
from peftkit.hub import CARD_FILES, Repo, Snapshot, open_snapshot
from peftkit.recipe.schema import Source

__all__ = ["LIBRARY_ERRORS", "Published", "find_published", "unreadable"]

datasets.disable_progress_bars()  # peftkit shows its own

LIBRARY_ERRORS = (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError)
"""What the library raises about a data set that it cannot read."""

_NAMING = ("name", "version", "description", "data_dir", "data_files")  # of a builder's configuration; the rest is how
_SPLIT = re.compile(r"\s*(\w+(?:\.\w+)*)")


@dataclass(frozen=True)
class Published:
    """The files of one configuration and split of a data set."""

    snapshot: Snapshot
    split: str
    """As the recipe asks for it: one, a slice of one, or a sum of these."""

    files: Mapping[str, list[str]]
    """Those of each split that has part in it."""

    reader: str
    """The library's name for the kind of the files: `parquet`, `json`, `csv`, …"""

    options: Mapping[str, Any]
    """How the data set's card says to read them."""

    @property
    def names(self) -> list[str]:
        """Every file that is needed, with those that say which these are."""
        cards = [name for name in CARD_FILES if name in self.snapshot.sizes]
        return [*cards, *sorted({name for names in self.files.values() for name in names})]

    def open(self, *, streaming: bool) -> Any:
        """The rows, which a stream reads from the hub as it goes where they are not on this machine.

        Raises:
            FieldError: the files cannot be fetched.
            Exception: one of LIBRARY_ERRORS, where the library cannot read them.
        """
        snapshot = self.snapshot
        place = str(snapshot.folder)
        if streaming and snapshot.refusal is None and snapshot.absent(self.names):
            place = f"hf://datasets/{snapshot.repo.name}@{snapshot.commit}"
        else:
            snapshot.bring(self.names)
        files = {split: [f"{place}/{name}" for name in names] for split, names in self.files.items()}
        return datasets.load_dataset(
            self.reader, data_files=files, split=self.split, streaming=streaming, **self.options
        )


def find_published(source: Source, split: str, field: str) -> Published:
    """Find the files of a source that names a data set of the hub, without fetching them; `field` is the source's.

    Raises:
        UnfetchedError: it is not on this machine, and the hub cannot be reached, or must not be.
        FieldError: the hub does not give it, or it has no such configuration or split.
    """
    repo = Repo("dataset", str(source.dataset), source.revision, f"{field}.dataset")
    snapshot = open_snapshot(repo)
    try:
        with tempfile.TemporaryDirectory() as work:
            outline = _outline(snapshot, Path(work, "outline"))
            builder = datasets.load_dataset_builder(str(outline), source.name, cache_dir=str(Path(work, "cache")))
            files = {
                str(part): [Path(path).relative_to(outline).as_posix() for path in paths]
                for part, paths in builder.config.data_files.items()
            }
    except LIBRARY_ERRORS as error:
        raise unreadable(repo.name, repo.field, error) from error
    named = list(files) if split == "all" else [found[1] for each in split.split("+") if (found := _SPLIT.match(each))]
    unknown = sorted(set(named) - set(files))
    if unknown:
        what = f"{repo.name} has no split {unknown[0]}."
        raise FieldError(f"{field}.split", what, remedy=f"There are: {', '.join(sorted(files))}.")
    reader = type(builder).__module__.rpartition(".")[2]
    return Published(snapshot, split, {name: files[name] for name in named}, reader, _options(builder))


def unreadable(name: str, field: str, error: Exception) -> FieldError:
    """What to say of a data set that the library cannot read."""
    reason = first_line(error)
    remedy = "Check name and split, or name a file with path."
    if "scripts are no longer supported" in reason:
        remedy = "Its files need a script, which is never run; try revision: refs/convert/parquet, the hub's copy."
    return FieldError(field, f"{name} cannot be read: {reason}", remedy=remedy)


def _outline(snapshot: Snapshot, work: Path) -> Path:
    """A folder with every file of a data set, empty but for its cards: enough to see which files are what.

    It has the data set's own name, by which the library knows a script.
    """
    outline = work / snapshot.repo.name.rpartition("/")[2]
    for name in snapshot.sizes:
        place = outline / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name in CARD_FILES:
            shutil.copyfile(snapshot.folder / name, place)
        else:
            place.touch()
    return outline.resolve()


def _options(builder: Any) -> dict[str, Any]:
    """How a builder's configuration differs from its kind's defaults, and the types of the columns, where given."""
    default = type(builder.config)()
    values = {each.name: getattr(builder.config, each.name) for each in dataclasses.fields(default)}
    options = {name: value for name, value in values.items() if name not in _NAMING and value != getattr(default, name)}
    return options | ({"features": builder.info.features} if builder.info.features else {})
