"""What a row means: a text to learn whole, or a prompt and the completion to learn."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from peftkit.errors import DataError, FieldError
from peftkit.recipe.names import nearest
from peftkit.recipe.schema import COLUMNS, Data

__all__ = ["Example", "examples", "prompt_of"]

_OPTIONAL = "input"
_INSTRUCTION = "### Instruction:\n{instruction}\n\n### Response:\n"
_INSTRUCTION_WITH_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Example:
    """One document: what is given, if anything is, and what is taught."""

    prompt: str | None
    completion: str


def examples(rows: Dataset, data: Data, field: str) -> Iterator[Example]:
    """Each row as an example, in order; `field` names the source in errors.

    Raises:
        FieldError: a column or a template's name is not there.
        DataError: a value is not text.
    """
    columns = _found_columns(rows.column_names, data, field)
    if data.format != "text":
        _check_template(data)
    number = 0
    for batch in rows.select_columns(list(columns.values())).iter(batch_size=_ROWS_AT_ONCE):
        for values in zip(*(batch[column] for column in columns.values()), strict=True):
            number += 1
            yield _example(dict(zip(columns, values, strict=True)), data, f"{field}, row {number}")


def prompt_of(prompt: str, data: Data) -> str:
    """A user's prompt as the model was taught to see it; a text model sees it as it is."""
    if data.format == "text":
        return prompt
    first = COLUMNS[data.format][0]
    return _prompt({first: prompt}, data)


def _found_columns(present: list[str], data: Data, field: str) -> dict[str, str]:
    """The column of the rows that each column of the format is in."""
    found: dict[str, str] = {}
    for name in COLUMNS[data.format]:
        column = data.columns.get(name, name)
        if column in present:
            found[name] = column
        elif name != _OPTIONAL or name in data.columns:
            guess = nearest(column, present)
            raise FieldError(
                f"{field}.path" if field.startswith("data.") else field,
                f"format: {data.format} needs a column {column!r}; the rows have {', '.join(present)}.",
                remedy=f"Set data.columns: {{{name}: {guess or 'NAME'}}}, or another data.format.",
            )
    return found


def _check_template(data: Data) -> None:
    if data.template is None:
        return
    allowed = COLUMNS[data.format][:-1]
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(data.template) if name is not None]
    except ValueError as error:
        raise FieldError("data.template", f"{error}.", remedy="Write {{ and }} for braces themselves.") from error
    for name in names:
        if name not in allowed:
            raise FieldError(
                "data.template", f"there is no {{{name}}}.", remedy=f"Use {', '.join(f'{{{a}}}' for a in allowed)}."
            )


def _example(row: Mapping[str, Any], data: Data, where: str) -> Example:
    values = {name: "" if value is None and name == _OPTIONAL else value for name, value in row.items()}
    for name, value in values.items():
        if not isinstance(value, str):
            kind = "empty" if value is None else f"a {type(value).__name__}"
            raise DataError(f"{name} is {kind}, not text.", where=where, remedy="Mend or remove the row.")
    completion = values[COLUMNS[data.format][-1]]
    return Example(None if data.format == "text" else _prompt(values, data), completion)


def _prompt(values: Mapping[str, str], data: Data) -> str:
    values = {_OPTIONAL: "", **values}
    if data.template is not None:
        return data.template.format_map(values)
    if data.format == "completion":
        return values["prompt"]
    return (_INSTRUCTION_WITH_INPUT if values[_OPTIONAL].strip() else _INSTRUCTION).format_map(values)
