"""Token ids that were made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftkit.data.formats.format import NO_LABEL, DataFormat, RowError, Tokenised

__all__ = ["Tokens"]


class Tokens(DataFormat[Tokenised]):
    """Token ids and perhaps labels, used unchanged."""

    name = "tokens"
    summary = "column `input_ids` and perhaps `labels`, used unchanged"
    columns = ("input_ids", "labels")
    optional = ("labels",)
    has_prompt = False

    def read(self, values: Mapping[str, Any], template: str | None) -> Tokenised:  # noqa: ARG002
        """The ids, and which of them are in the loss: all where the row has no labels."""
        input_ids, labels = values["input_ids"], values["labels"]
        for column, found in (("input_ids", input_ids), ("labels", labels)):
            if found is None and column == "labels":
                continue
            if not isinstance(found, list) or any(type(value) is not int for value in found):
                raise RowError(f"{column} is {'missing' if found is None else 'no list of whole numbers'}")
        if not input_ids:
            raise RowError("input_ids is empty")
        if labels is None:
            return input_ids, [True] * len(input_ids)
        if len(labels) != len(input_ids):
            raise RowError(f"has {len(input_ids)} input_ids and {len(labels)} labels")
        for place, (token, label) in enumerate(zip(input_ids, labels, strict=True)):
            if label not in (token, NO_LABEL):
                raise RowError(f"label {label} at {place} is neither {NO_LABEL} nor the token {token} itself")
        return input_ids, [label != NO_LABEL for label in labels]

    def texts(self, content: Tokenised) -> Sequence[str]:  # noqa: ARG002
        """None."""
        return []

    def encode(self, contents: Sequence[Tokenised], tokenizer: Any, template: str | None) -> list[Tokenised | RowError]:  # noqa: ARG002
        """The rows themselves; one with an id beyond the vocabulary cannot be used."""
        vocabulary = len(tokenizer)
        found: list[Tokenised | RowError] = []
        for ids, labels in contents:
            if 0 <= min(ids) <= max(ids) < vocabulary:
                found.append((ids, labels))
            else:
                wrong = next(token for token in ids if not 0 <= token < vocabulary)
                found.append(RowError(f"token {wrong} is beyond the vocabulary of {vocabulary:,}"))
        return found
