"""Running text, learnt whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftkit.data.formats.format import Example, ExampleFormat, Writing, text_of

__all__ = ["Text"]


class Text(ExampleFormat):
    """A text without a prompt: every token is in the loss."""

    name = "text"
    summary = "column `text`; every token is in the loss"
    columns = ("text",)
    layouts = ({"text": "text"},)
    is_plain_text = True
    has_prompt = False

    def read(self, values: Mapping[str, Any], writing: Writing) -> Example | None:  # noqa: ARG002
        """The text; None if it has nothing but spaces."""
        text = text_of("text", values["text"], may_be_empty=True)
        return Example(None, text) if text.strip() else None

    def check_template(self, template: str | None) -> None:
        """Text has no prompt, and the recipe's schema refuses a template for it."""

    def prompt(self, prompt: str, tokenizer: Any, writing: Writing) -> str:  # noqa: ARG002
        """The prompt as it is."""
        return prompt
