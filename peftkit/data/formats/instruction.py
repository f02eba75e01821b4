"""An instruction, perhaps with an input, and its output."""

from __future__ import annotations

from collections.abc import Mapping

from peftkit.data.formats.format import ExampleFormat

__all__ = ["Instruction"]

_PLAIN = "### Instruction:\n{instruction}\n\n### Response:\n"
_WITH_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"


class Instruction(ExampleFormat):
    """An instruction, and the output that is learnt."""

    name = "instruction"
    summary = "columns `instruction`, `input` (may be empty) and `output`; only the output is in the loss"
    columns = ("instruction", "input", "output")
    optional = ("input",)

    def default_template(self, texts: Mapping[str, str]) -> str:
        """The template of Stanford Alpaca (Taori et al. 2023)."""
        return _WITH_INPUT if texts["input"].strip() else _PLAIN
