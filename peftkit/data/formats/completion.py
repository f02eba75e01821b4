"""A prompt and its completion."""

from __future__ import annotations

from collections.abc import Mapping

from peftkit.data.formats.format import ExampleFormat

__all__ = ["Completion"]


class Completion(ExampleFormat):
    """A prompt, and the completion that is learnt."""

    name = "completion"
    summary = "columns `prompt` and `completion`, or `input` and `output`; only the completion is in the loss"
    columns = ("prompt", "completion")
    other_layouts = ({"prompt": "input", "completion": "output"},)

    def default_template(self, texts: Mapping[str, str]) -> str:  # noqa: ARG002
        """The prompt alone."""
        return "{prompt}"
