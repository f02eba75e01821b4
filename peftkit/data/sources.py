"""Where rows come from (files, the hub, or peftkit's own grammar) and which format they have."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from peftkit.data import grammar
from peftkit.data.files import Row, bring, count_lines, file_rows
from peftkit.data.formats import AUTO, FORMATS
from peftkit.data.formats.format import DataFormat
from peftkit.errors import DataError, FieldError, RowsError, nearest, printable
from peftkit.recipe.references import DATA_SUFFIXES, data_suffix, is_remote
from peftkit.recipe.schema import Data, Source
from peftkit.storage import sha256_of_file

__all__ = ["BAD_ROWS_SHOWN", "BUILTIN", "Layout", "Rows", "layout_of", "open_rows", "recognise", "split_of"]

BAD_ROWS_SHOWN = 10
_LOOKED_AT = 1000
_BY_LINE = (".txt", ".jsonl", ".ndjson", ".csv", ".tsv")

BUILTIN = "builtin:grammar"
_GRAMMAR = Path(grammar.__file__)


@dataclass(frozen=True)
class Rows:
    """The rows of one source, read anew each time they are gone through."""

    name: str
    """What errors call the source."""

    identity: dict[str, Any]
    """What distinguishes these rows from any others: the files' hashes, or the name and commit of a data set."""

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
    for name in named:
        if not is_remote(name) and not Path(name).expanduser().is_file():
            raise FieldError(f"{field}.path", f"there is no file {name}.", remedy="Check the path.")
        if data_suffix(name) is None:
            remedy = f"Use {', '.join(DATA_SUFFIXES)}."
            raise FieldError(f"{field}.path", f"{Path(name).name} is of no kind that can be read.", remedy=remedy)
    shown = {name: name if is_remote(name) else str(Path(name).expanduser()) for name in named}
    remote = [name for name in named if is_remote(name)]
    places = shown | {name: bring(name, f"{field}.path", copy=not streaming) for name in remote}
    hashes = {shown[name]: None if streaming else sha256_of_file(Path(places[name])) for name in named}
    size = (
        {"bytes": sum(Path(shown[name]).stat().st_size for name in named if not is_remote(name))} if streaming else {}
    )
    by_line = not streaming and all(Path(place).suffix.lower() in _BY_LINE for place in places.values())
    lines = sum(count_lines(Path(places[name])) for name in named) if by_line else None
    return Rows(
        name=", ".join(shown[name] for name in named),
        identity={"files": hashes} | size,
        total=_at_most(lines, source.limit),
        _read=lambda: (row for name in named for row in file_rows(shown[name], data, places[name])),
        _limit=source.limit,
    )


def _from_grammar(source: Source, field: str) -> Rows:
    split: grammar.Split = "validation" if split_of(source, field) == "validation" else "train"
    identity = {"dataset": BUILTIN, "name": source.name, "split": split, "sha256": sha256_of_file(_GRAMMAR)}
    if source.name == "corpus":
        return _numbered(
            source, identity, grammar.DOCUMENTS[split], lambda: ({"text": text} for text in grammar.corpus(split))
        )
    if source.name == "task":
        return _numbered(source, identity, grammar.ROWS[split], lambda: grammar.task(split))
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
    return _numbered(source, identity, None if streaming else len(found), lambda: found)


def _numbered(
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


@dataclass(frozen=True)
class Layout:
    """A format, and the columns of the rows that hold its own columns."""

    form: DataFormat[Any]
    columns: Mapping[str, str]
    optional: Mapping[str, str]

    @classmethod
    def all_of(cls, form: DataFormat[Any]) -> Iterator[Layout]:
        """Every layout that a format is recognised by."""
        for names in form.layouts:
            required = {name: column for name, column in names.items() if name not in form.optional}
            yield cls(form, required, {name: names.get(name, name) for name in form.optional})

    def renamed(self, names: Mapping[str, str]) -> Layout:
        """The layout with other columns of the rows, where `names` has any."""
        columns = {name: names.get(name, column) for name, column in self.columns.items()}
        return Layout(self.form, columns, {name: names.get(name, column) for name, column in self.optional.items()})

    def spelled(self, present: Iterable[str]) -> Layout:
        """The layout with the columns as rows write them, in capitals or not."""
        written = {column.casefold(): column for column in present}
        both = {**self.columns, **self.optional}
        names = {name: written.get(column.casefold(), column) for name, column in both.items()}
        return self.renamed({name: names[name] for name, column in both.items() if column not in present})

    @property
    def used(self) -> frozenset[str]:
        """The columns of the rows that have a meaning."""
        return frozenset((*self.columns.values(), *self.optional.values()))

    def knows(self, names: Mapping[str, str]) -> bool:
        """Whether the format has all of these columns of its own."""
        return names.keys() <= {**self.columns, **self.optional}.keys()

    def fits(self, present: frozenset[str]) -> bool:
        """Whether rows with these columns have the layout."""
        return set(self.columns.values()) <= present

    def values_of(self, row: Row) -> dict[str, object]:
        """The values of a row under the format's own names; what it lacks is None."""
        return {name: row.values.get(column) for name, column in {**self.columns, **self.optional}.items()}

    def __str__(self) -> str:
        optional = [f"({column})" for column in self.optional.values()]
        return f"{self.form.name}: {_joined([*self.columns.values(), *optional])}"


def layout_of(rows: Rows, data: Data, field: str) -> tuple[Layout, str]:
    """The layout of a source's rows, and how it was recognised.

    Raises:
        FieldError: its columns are not those of the format, or the recipe's template is not.
        DataError: it has no rows, or none that can be read.
    """
    first = list(islice(rows, _LOOKED_AT))
    if not first:
        raise DataError("has no rows.", where=rows.name, remedy="Check the file, or the split.")
    good = [row for row in first if not row.problem]
    if not good:
        named = [f"{row.place}: {row.problem}." for row in first[:BAD_ROWS_SHOWN]]
        raise RowsError(named, len(first), len(first), where=rows.name)
    layout, why = recognise(good, data, field, rows.name)
    if data.truncation == "split" and not layout.form.is_plain_text:
        what = f"split would cut a prompt from its completion; {rows.name} has the format {layout.form.name}."
        raise FieldError("data.truncation", what, remedy="Use cut or error.")
    layout.form.check_template(data.template)
    return layout, why


def recognise(rows: Sequence[Row], data: Data, field: str, name: str) -> tuple[Layout, str]:
    """The layout of the first rows of a source, all of which could be read, and how it was recognised.

    Args:
        rows: some rows; what comes after them must have their layout.
        data: may name the format, and other names of its columns.
        field: where the recipe names the source.
        name: what errors call the source.

    Raises:
        FieldError: the rows lack a column of the format that the recipe names.
        DataError: rows are of several formats, or of none that is known.
    """
    layouts = [layout for form in FORMATS.values() for layout in Layout.all_of(form) if layout.knows(data.columns)]
    layouts = [layout.renamed(data.columns) for layout in layouts if data.format in (AUTO, layout.form.name)]
    present_in = [frozenset(name for name, value in row.values.items() if value is not None) for row in rows]
    columns = Counter(present_in)
    first = dict(zip(reversed(present_in), reversed(rows), strict=True))
    found = [(present, layout) for present, row in first.items() for layout in _closest(layouts, present, row)]
    if data.format != AUTO:
        if not found:
            raise _columns_missing(layouts[0], columns, data, field)
        return max(found, key=lambda each: columns[each[0]])[1], "the recipe says so"
    formats = {str(layout): layout for _, layout in found}
    if len(formats) == 1:
        layout = next(iter(formats.values()))
        return layout, f"its rows have {' and '.join(map(printable, layout.columns.values()))}"
    raise DataError(
        _unclear(columns, list(formats), layouts), where=name, remedy="Set format or columns in data or in the source."
    )


def _closest(layouts: Sequence[Layout], present: frozenset[str], row: Row) -> Iterator[Layout]:
    """The layouts of a row with these columns, without those that others hold and add to."""
    spelled = [layout.spelled(present) for layout in layouts]
    fitting = [layout for layout in spelled if layout.fits(present) and layout.form.takes(layout.values_of(row))]
    used = [(layout.used & present, layout) for layout in fitting]
    for place, (columns, layout) in enumerate(used):
        same = any(columns == others and layout.form is other.form for others, other in used[:place])
        if not same and not any(columns < others for others, _ in used):
            yield layout


def _columns_missing(layout: Layout, columns: Counter[frozenset[str]], data: Data, field: str) -> FieldError:
    present = sorted(set().union(*columns))
    for name, column in layout.columns.items():
        if column not in present:
            guess = nearest(column, present) or "NAME"
            return FieldError(
                field,
                f"format: {data.format} needs a column {column!r}; the rows have {_joined(present) or 'none'}.",
                remedy=f"Set data.columns: {{{name}: {printable(guess)}}}, or another data.format.",
            )
    return FieldError(
        field,
        f"format: {data.format} needs {_joined([*layout.columns.values()])} in each row, and no row has them all.",
        remedy="Fix the rows, or set another data.format.",
    )


def _joined(columns: Iterable[str]) -> str:
    return ", ".join(map(printable, columns))


def _unclear(columns: Counter[frozenset[str]], formats: list[str], layouts: Sequence[Layout]) -> str:
    kinds = columns.most_common(3)
    shown = "; ".join(f"{_joined(sorted(present)) or 'no column'} in {count:,}" for present, count in kinds)
    more = f"; and {len(columns) - len(kinds)} more kinds" if len(columns) > len(kinds) else ""
    expected = "; ".join(str(layout) for layout in layouts)
    if formats:
        return f"has rows of several formats ({' and '.join(formats)}). Columns of the first rows: {shown}{more}."
    return f"has rows of no known format. Columns of the first rows: {shown}{more}. Expected are {expected}."
