"""What a data format is: the columns of its rows, and how a row becomes tokens with labels."""

from __future__ import annotations

import re
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar

from peftkit.data.formats.spans import Tokenised, encode_spans
from peftkit.errors import FieldError, printable

__all__ = ["NO_LABEL", "SILENT", "DataFormat", "Example", "ExampleFormat", "RowError", "Writing", "text_of"]

NO_LABEL: Final = -100
"""The label of a token that is not in the loss: the value that torch's cross-entropy leaves out."""

Content = TypeVar("Content")

SILENT: Final = frozenset({
    "annotations", "author", "category", "conversation_id", "created", "created_at", "dataset", "date",
    "difficulty", "domain", "hash", "id", "idx", "index", "lang", "language", "license", "message_id", "meta",
    "metadata", "model", "name", "parallel_tool_calls", "prompt_id", "quality", "rating", "row_id", "score",
    "source", "split", "subset", "tags", "time", "timestamp", "title", "token_type_ids", "topic", "turn",
    "turn_id", "type", "uid", "url", "uuid",
})  # fmt: skip
"""Columns of a row, and keys of a turn, that say nothing which a model would be trained on."""

_SURROGATES = re.compile("[\ud800-\udfff]")  # halves of characters, which UTF-8 cannot encode


class RowError(Exception):
    """A row that cannot be used; the text says why."""


@dataclass(frozen=True)
class Writing:
    """How rows become text, and what of it is in the loss, as the recipe's section `data` says it."""

    template: str | None = None
    train_on: Literal["assistant", "last", "all"] = "assistant"
    system: Literal["keep", "merge"] = "keep"
    labels: Mapping[int | str, str] = field(default_factory=dict)
    """Words for completions that are numbers."""

    time: datetime | None = None
    """What a template that reads the clock is given; None for the clock's own time."""


class DataFormat(ABC, Generic[Content]):
    """One format. Everything that differs between formats is declared or done here."""

    name: ClassVar[str]
    """As a recipe writes it."""

    summary: ClassVar[str]
    """The columns and which tokens are in the loss, for the documentation of `data.format`."""

    columns: ClassVar[tuple[str, ...]]
    """The format's own names of what a row holds."""

    optional: ClassVar[tuple[str, ...]] = ()
    """Those of the columns that a row may lack."""

    layouts: ClassVar[tuple[Mapping[str, str], ...]] = ()
    """The columns that rows may have: in each layout, usual names by the format's own. An optional column that a
    layout does not name has its own name. The first is the format's own columns."""

    is_plain_text: ClassVar[bool] = False
    """Whether every token of running text is in the loss: long documents are split by default and short ones packed,
    and short lines may repeat between training and validation."""

    has_prompt: ClassVar[bool] = True
    """Whether a row has a prompt, which a template can change, and a completion, which can be compared with."""

    has_chat_template: ClassVar[bool] = False
    """Whether the template is the tokenizer's own kind, which writes whole conversations with their end tokens."""

    def takes(self, values: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Whether the values of such columns are of the format, where columns of another have the same names."""
        return True

    def reads_clock(self, tokenizer: Any, writing: Writing) -> bool:  # noqa: ARG002
        """Whether the template writes the time, so that the same rows become other documents later."""
        return False

    @abstractmethod
    def read(self, values: Mapping[str, Any], writing: Writing) -> Content | None:
        """The content of a row, given under the format's own names; None for an empty text, which is not an error.

        Raises:
            RowError: the row cannot be used.
        """

    @abstractmethod
    def texts(self, content: Content) -> Sequence[str]:
        """The texts of a row, to train a tokenizer on; none where the row has token ids only."""

    @abstractmethod
    def encode(self, contents: Sequence[Content], tokenizer: Any, writing: Writing) -> list[Tokenised | RowError]:
        """The tokens and labels of each row, or why it cannot be used."""

    def check_template(self, template: str | None) -> None:
        """Check a recipe's template as far as that is possible without a tokenizer.

        Raises:
            FieldError: it cannot be used.
        """

    def choose_template(self, template: str | None, tokenizer: Any) -> str | None:  # noqa: ARG002
        """The template that rows are written with: the recipe's, or one that the format falls back to.

        Raises:
            FieldError: the recipe's cannot be used.
        """
        return template

    def prompt(self, prompt: str, tokenizer: Any, writing: Writing) -> str:  # noqa: ARG002
        """A user's prompt in the form that training used."""
        return prompt

    def end_tokens(self, tokenizer: Any, writing: Writing) -> list[int]:  # noqa: ARG002
        """The tokens that end what is learnt, at which generation stops."""
        return [tokenizer.eos_token_id]


@dataclass(frozen=True)
class Example:
    """What is given, if anything is, and the text in the loss."""

    prompt: str | None
    completion: str


class ExampleFormat(DataFormat[Example]):
    """A format whose rows are a prompt and a completion.

    The end-of-text token follows each completion and is in the loss: the model learns to stop.
    """

    def default_template(self, texts: Mapping[str, str]) -> str:
        """How a row becomes the prompt unless the recipe says it."""
        raise NotImplementedError

    def read(self, values: Mapping[str, Any], writing: Writing) -> Example | None:
        """The row's prompt, written by the template, and its completion."""
        required = [name for name in self.columns if name not in self.optional]
        values = {**values, self.columns[-1]: _in_words(self.columns[-1], values[self.columns[-1]], writing.labels)}
        texts = {name: text_of(name, values[name]) for name in required}
        texts |= {name: text_of(name, values[name] or "", may_be_empty=True) for name in self.optional}
        return Example(self._filled(texts, writing.template), texts[self.columns[-1]])

    def texts(self, content: Example) -> Sequence[str]:
        """Prompt and completion as one text."""
        return [(content.prompt or "") + content.completion]

    def encode(self, contents: Sequence[Example], tokenizer: Any, writing: Writing) -> list[Tokenised | RowError]:
        """The prompt, which is not in the loss, the completion and the end token, which are."""
        texts = []
        for example in contents:
            prompt = example.prompt or ""
            text = prompt + example.completion
            texts.append((text, [(0 if writing.train_on == "all" else len(prompt), len(text))]))
        return list(encode_spans(texts, tokenizer, end=True))

    def check_template(self, template: str | None) -> None:
        """Check that the template names columns of the format only, and that its braces match."""
        if template is None:
            return
        allowed = self.columns[:-1]
        try:
            parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
        except ValueError as error:
            raise FieldError("data.template", f"{error}.", remedy="Write {{ and }} for braces themselves.") from error
        for _, name, form, conversion in parts:
            if name not in allowed or form or conversion:
                shown = printable(f"{{{name}}}")
                what = f"has more than a name in {shown}." if name in allowed else f"there is no {shown}."
                raise FieldError("data.template", what, remedy=f"Use {', '.join(f'{{{a}}}' for a in allowed)}.")

    def prompt(self, prompt: str, tokenizer: Any, writing: Writing) -> str:  # noqa: ARG002
        """The prompt as the row's first column, with the others empty."""
        return self._filled({**dict.fromkeys(self.columns, ""), self.columns[0]: prompt}, writing.template)

    def _filled(self, texts: Mapping[str, str], template: str | None) -> str:
        return (self.default_template(texts) if template is None else template).format_map(texts)


def _in_words(column: str, value: Any, labels: Mapping[int | str, str]) -> Any:
    """The word for a label, or the value itself where the recipe has no labels.

    Raises:
        RowError: it is no label of the recipe's, or a number without labels.
    """
    if not labels:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise RowError(f"{column} is a number, not text; give its words in data.labels")
        return value
    known = {str(label): word for label, word in labels.items()}
    if value is not None and str(value) not in known:
        raise RowError(f"{column} {printable(str(value))} is none of data.labels")
    return known.get(str(value))


def text_of(column: str, value: Any, *, may_be_empty: bool = False) -> str:
    """The value of a column that must be text.

    Raises:
        RowError: it is missing, empty, of another type, or cannot be encoded.
    """
    if value is None:
        raise RowError(f"{column} is missing")
    if not isinstance(value, str):
        kinds = {bool: "truth value", int: "number", float: "number", list: "list", dict: "mapping"}
        raise RowError(f"{column} is a {kinds.get(type(value), type(value).__name__)}, not text")
    if not may_be_empty and not value.strip():
        raise RowError(f"{column} is empty")
    if _SURROGATES.search(value):
        raise RowError(f"{column} holds what is no UTF-8")
    return value
