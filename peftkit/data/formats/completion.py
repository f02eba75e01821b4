"""A prompt and its completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftkit.data.formats.format import ExampleFormat

__all__ = ["Completion"]


class Completion(ExampleFormat):
    """A prompt, and the completion that is learnt."""

    name = "completion"
    summary = "columns `prompt` and `completion`, or `input` and `output`; only the completion is in the loss"
    columns = ("prompt", "completion")
    layouts = (
        {"prompt": "prompt", "completion": "completion"},
        {"prompt": "input", "completion": "output"},
        {"prompt": "prompt", "completion": "response"},
        {"prompt": "question", "completion": "answer"},
        {"prompt": "query", "completion": "response"},
        {"prompt": "query", "completion": "answer"},
        {"prompt": "question", "completion": "response"},
    )

    def takes(self, values: Mapping[str, Any]) -> bool:
        """Whether they are texts; lists of messages are a conversation."""
        return not any(isinstance(value, list) for value in values.values())

    def default_template(self, texts: Mapping[str, str]) -> str:  # noqa: ARG002
        """The prompt alone."""
        return "{prompt}"
