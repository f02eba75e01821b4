"""Which format the rows of a source have, told from their columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from peftkit.data.files import Row
from peftkit.errors import DataError, FieldError
from peftkit.recipe.names import nearest, printable
from peftkit.recipe.schema import Data

__all__ = ["Shape", "recognise"]


@dataclass(frozen=True)
class Shape:
    """A format, and the columns of the rows that its own columns are in."""

    format: str
    columns: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, names: Mapping[str, str]) -> Shape:
        """The shape with other columns of the rows, where `names` has any."""
        columns = {name: names.get(name, column) for name, column in self.columns.items()}
        return Shape(self.format, columns, {name: names.get(name, column) for name, column in self.optional.items()})

    def knows(self, names: Mapping[str, str]) -> bool:
        """Whether the format has all of these columns of its own."""
        return names.keys() <= {**self.columns, **self.optional}.keys()

    def fits(self, present: frozenset[str]) -> bool:
        """Whether rows with these columns have the shape."""
        return set(self.columns.values()) <= present

    def read(self, row: Row) -> dict[str, object]:
        """The values of a row under the format's own names; what it lacks is None."""
        return {name: row.values.get(column) for name, column in {**self.columns, **self.optional}.items()}

    def __str__(self) -> str:
        optional = [f"({column})" for column in self.optional.values()]
        return f"{self.format}: {_listed([*self.columns.values(), *optional])}"


_SHAPES = (
    Shape("text", {"text": "text"}),
    Shape("completion", {"prompt": "prompt", "completion": "completion"}),
    Shape("completion", {"prompt": "input", "completion": "output"}),
    Shape("instruction", {"instruction": "instruction", "output": "output"}, {"input": "input"}),
    Shape("chat", {"messages": "messages"}),
    Shape("chat", {"messages": "conversations"}),
    Shape("tokens", {"input_ids": "input_ids"}, {"labels": "labels"}),
)


def recognise(rows: Sequence[Row], data: Data, field: str, name: str) -> tuple[Shape, str]:
    """The shape of the first rows of a source, all of which could be read, and why it is that.

    Args:
        rows: some rows; what comes after them must have their shape.
        data: may name the format, and other names of its columns.
        field: where the recipe names the source.
        name: what errors call the source.

    Raises:
        FieldError: rows have not the columns of the format that the recipe names.
        DataError: rows are of several formats, or of none that is known.
    """
    shapes = [shape for shape in _SHAPES if shape.knows(data.columns)]
    shapes = [shape.renamed(data.columns) for shape in shapes if data.format in ("auto", shape.format)]
    columns = Counter(frozenset(name for name, value in row.values.items() if value is not None) for row in rows)
    if data.format != "auto":
        fitting = [shape for shape in shapes if any(shape.fits(present) for present in columns)]
        if not fitting:
            raise _columns_missing(shapes[0], columns, data, field)
        return fitting[0], "the recipe says so"
    found = [(present, shape) for present in columns for shape in _closest(shapes, present)]
    formats = {str(shape): shape for _, shape in found}
    if len(formats) == 1:
        shape = next(iter(formats.values()))
        return shape, f"its rows have {' and '.join(map(printable, shape.columns.values()))}"
    raise DataError(
        _unclear(columns, list(formats), shapes), where=name, remedy="Set format or columns in data or in the source."
    )


def _closest(shapes: Sequence[Shape], present: frozenset[str]) -> Iterator[Shape]:
    """The shapes of rows with these columns, without those that others hold and add to."""
    fitting = [shape for shape in shapes if shape.fits(present)]
    used = [({*shape.columns.values(), *shape.optional.values()} & present, shape) for shape in fitting]
    return (shape for columns, shape in used if not any(columns < others for others, _ in used))


def _columns_missing(shape: Shape, columns: Counter[frozenset[str]], data: Data, field: str) -> FieldError:
    present = sorted(set().union(*columns))
    for name, column in shape.columns.items():
        if column not in present:
            guess = nearest(column, present) or "NAME"
            return FieldError(
                field,
                f"format: {data.format} needs a column {column!r}; the rows have {_listed(present) or 'none'}.",
                remedy=f"Set data.columns: {{{name}: {printable(guess)}}}, or another data.format.",
            )
    return FieldError(
        field,
        f"format: {data.format} needs {_listed([*shape.columns.values()])} in each row, and no row has them all.",
        remedy="Mend the rows, or set another data.format.",
    )


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(printable, columns))


def _unclear(columns: Counter[frozenset[str]], formats: list[str], shapes: Sequence[Shape]) -> str:
    kinds = columns.most_common(3)
    shown = "; ".join(f"{_listed(sorted(present)) or 'no column'} in {count:,}" for present, count in kinds)
    more = f"; and {len(columns) - len(kinds)} more kinds" if len(columns) > len(kinds) else ""
    expected = "; ".join(str(shape) for shape in shapes)
    if formats:
        return f"has rows of several formats ({' and '.join(formats)}). Columns of the first rows: {shown}{more}."
    return f"has rows of no known format. Columns of the first rows: {shown}{more}. Expected are {expected}."
