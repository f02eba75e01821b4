"""What a row means: a text to learn whole, a prompt and its completion, a conversation, or token ids."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from peftkit.data.chat import Message, chat_template, conversation, prompt_of_chat
from peftkit.data.documents import NO_LABEL
from peftkit.data.files import Row, RowError
from peftkit.data.shapes import Shape
from peftkit.errors import FieldError
from peftkit.recipe.names import printable
from peftkit.recipe.schema import COLUMNS, Data

__all__ = ["Conversation", "Example", "Ids", "Meaning", "check_template", "meaning_of", "prompt_of"]

_INSTRUCTION = "### Instruction:\n{instruction}\n\n### Response:\n"
_INSTRUCTION_WITH_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
_NO_TEXT = re.compile("[\ud800-\udfff]")  # halves of characters, which no UTF-8 has


@dataclass(frozen=True)
class Example:
    """What is given, if anything is, and what is taught."""

    prompt: str | None
    completion: str


@dataclass(frozen=True)
class Conversation:
    """Turns, of which the assistant's are taught."""

    messages: list[Message]


@dataclass(frozen=True)
class Ids:
    """Token ids, and whether each is taught."""

    input_ids: list[int]
    taught: list[bool]


Meaning: TypeAlias = Example | Conversation | Ids


def meaning_of(row: Row, shape: Shape, template: str | None) -> Meaning | None:
    """What a row says, or None if it is an empty text, which is no mistake.

    Raises:
        RowError: it cannot be used.
    """
    if row.problem:
        raise RowError(row.problem)
    values = shape.read(row)
    if shape.format == "tokens":
        return _ids(values["input_ids"], values["labels"])
    if shape.format == "chat":
        messages = conversation(values["messages"])
        for message in messages:
            _text("content", message["content"])
        return Conversation(messages)
    if shape.format == "text":
        text = _text("text", values["text"], may_be_empty=True)
        return Example(None, text) if text.strip() else None
    texts = {name: _text(name, value) for name, value in values.items() if name not in shape.optional}
    texts |= {name: _text(name, values[name] or "", may_be_empty=True) for name in shape.optional}
    return Example(_prompt(texts, shape.format, template), texts[COLUMNS[shape.format][-1]])


def prompt_of(prompt: str, data: Data, tokenizer: Any) -> str:
    """A user's prompt as the model was taught to see it; a model of plain text sees it as it is.

    Where the sources are of several formats, it is put as those of the first are.
    """
    data = data.of(data.train_sources[0])
    if data.format == "chat":
        return prompt_of_chat([{"role": "user", "content": prompt}], tokenizer, chat_template(data, tokenizer))
    if data.format in ("completion", "instruction"):
        return _prompt({COLUMNS[data.format][0]: prompt}, data.format, data.template)
    return prompt


def check_template(data: Data, format: str) -> None:  # noqa: A002
    """See that a template names columns of its format.

    Raises:
        FieldError: it names others, or its braces do not match.
    """
    if data.template is None or format not in ("completion", "instruction"):
        return
    allowed = COLUMNS[format][:-1]
    try:
        parts = [part for part in string.Formatter().parse(data.template) if part[1] is not None]
    except ValueError as error:
        raise FieldError("data.template", f"{error}.", remedy="Write {{ and }} for braces themselves.") from error
    for _, name, form, conversion in parts:
        if name not in allowed or form or conversion:
            shown = printable(f"{{{name}}}")
            what = f"has more than a name in {shown}." if name in allowed else f"there is no {shown}."
            raise FieldError("data.template", what, remedy=f"Use {', '.join(f'{{{a}}}' for a in allowed)}.")


def _prompt(values: Mapping[str, str], format: str, template: str | None) -> str:  # noqa: A002
    """The prompt of a completion or an instruction, from its columns."""
    values = {"input": "", **values}
    if template is not None:
        return template.format_map(values)
    if format == "completion":
        return values["prompt"]
    return (_INSTRUCTION_WITH_INPUT if values["input"].strip() else _INSTRUCTION).format_map(values)


def _text(column: str, value: Any, may_be_empty: bool = False) -> str:
    if value is None:
        raise RowError(f"{column} is missing")
    if not isinstance(value, str):
        raise RowError(f"{column} is a {_kind(value)}, not text")
    if not may_be_empty and not value.strip():
        raise RowError(f"{column} is empty")
    if _NO_TEXT.search(value):
        raise RowError(f"{column} holds what is no UTF-8")
    return value


def _kind(value: Any) -> str:
    kinds = {bool: "truth value", int: "number", float: "number", list: "list", dict: "mapping"}
    return kinds.get(type(value), type(value).__name__)


def _ids(input_ids: Any, labels: Any) -> Ids:
    for column, values in (("input_ids", input_ids), ("labels", labels)):
        if values is None and column == "labels":
            continue
        if not isinstance(values, list) or any(type(value) is not int for value in values):
            raise RowError(f"{column} is {'missing' if values is None else 'no list of whole numbers'}")
    if not input_ids:
        raise RowError("input_ids is empty")
    if labels is None:
        return Ids(input_ids, [True] * len(input_ids))
    if len(labels) != len(input_ids):
        raise RowError(f"has {len(input_ids)} input_ids and {len(labels)} labels")
    for place, (token, label) in enumerate(zip(input_ids, labels, strict=True)):
        if label not in (token, NO_LABEL):
            raise RowError(f"label {label} at {place} is neither {NO_LABEL} nor the token {token} itself")
    return Ids(input_ids, [label != NO_LABEL for label in labels])
