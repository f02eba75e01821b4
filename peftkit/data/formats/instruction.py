"""An instruction, perhaps with an input, and its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftkit.data.formats.format import Example, ExampleFormat, RowError, Writing, text_of

__all__ = ["Instruction"]

_PLAIN = "### Instruction:\n{instruction}\n\n### Response:\n"
_WITH_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"


class Instruction(ExampleFormat):
    """An instruction, and the output that is learnt."""

    name = "instruction"
    summary = (
        "columns `instruction`, `input` (may be empty) and `output`, perhaps with `system` and `history` (pairs of "
        "earlier instructions and outputs); only the output is in the loss"
    )
    columns = ("instruction", "input", "system", "history", "output")
    optional = ("input", "system", "history")
    layouts = (
        {"instruction": "instruction", "output": "output"},
        {"instruction": "instruction", "output": "response", "input": "context"},
        {"instruction": "instruction", "output": "response"},
    )

    def read(self, values: Mapping[str, Any], writing: Writing) -> Example | None:
        """The prompt with what the system says and what was said before, and the output."""
        history = _history(values["history"])
        example = super().read({**values, "history": None}, writing)
        assert example is not None
        system = text_of("system", values["system"] or "", may_be_empty=True)
        earlier = [
            self._filled({**dict.fromkeys(self.columns, ""), "instruction": asked}, writing.template) + said
            for asked, said in history
        ]
        uses_system = writing.template is not None and "{system}" in writing.template
        before = [system] if system and not uses_system else []
        return Example("\n\n".join([*before, *earlier, example.prompt or ""]), example.completion)

    def default_template(self, texts: Mapping[str, str]) -> str:
        """The template of Stanford Alpaca (Taori et al. 2023)."""
        return _WITH_INPUT if texts["input"].strip() else _PLAIN


def _history(value: Any) -> list[tuple[str, str]]:
    """Pairs of what was asked and what was answered.

    Raises:
        RowError: it is something else.
    """
    pairs = []
    for number, pair in enumerate(value or [], start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"pair {number} of its history is no list of two texts")
        pairs.append((text_of("history", pair[0]), text_of("history", pair[1])))
    return pairs
