"""Token ids that were made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

from peftkit.data.formats.format import NO_LABEL, DataFormat, RowError, Writing
from peftkit.data.formats.spans import Tokenised

__all__ = ["Tokens"]


_MASKS = ("completion_mask", "assistant_masks", "loss_mask")


class Tokens(DataFormat[Tokenised]):
    """Token ids and perhaps labels or masks, used unchanged."""

    name = "tokens"
    summary = (
        "column `input_ids`, used unchanged; perhaps `labels`, `completion_mask`, `assistant_masks` or `loss_mask`, "
        "which say what is in the loss; and `attention_mask`, whose zeros are padding and are left out"
    )
    columns = ("input_ids", "labels", *_MASKS, "attention_mask")
    optional = columns[1:]
    layouts = ({"input_ids": "input_ids"},)
    has_prompt = False

    def read(self, values: Mapping[str, Any], writing: Writing) -> Tokenised:  # noqa: ARG002
        """The ids, and which of them are in the loss: all where the row has neither labels nor masks."""
        found = {name: values[name] for name in self.columns if values[name] is not None}
        input_ids = found.get("input_ids")
        for column, numbers in {"input_ids": input_ids, **found}.items():
            if not isinstance(numbers, list) or any(type(value) is not int for value in numbers):
                raise RowError(f"{column} is {'missing' if numbers is None else 'no list of whole numbers'}")
            if len(numbers) != len(input_ids or []):
                raise RowError(f"has {len(input_ids or [])} input_ids and {len(numbers)} {column}")
        if not input_ids:
            raise RowError("input_ids is empty")
        in_loss = [True] * len(input_ids)
        for column in (*_MASKS, "attention_mask"):
            if strange := set(found.get(column, ())) - {0, 1}:
                raise RowError(f"{column} has {min(strange)}, which is neither 0 nor 1")
        for place, (token, label) in enumerate(zip(input_ids, found.get("labels", input_ids), strict=True)):
            if label not in (token, NO_LABEL):
                raise RowError(f"label {label} at {place} is neither {NO_LABEL} nor the token {token} itself")
            in_loss[place] = label != NO_LABEL and all(found[mask][place] for mask in _MASKS if mask in found)
        real = [bool(value) for value in found.get("attention_mask", [1] * len(input_ids))]
        if not any(real):
            raise RowError("attention_mask is all zeros")
        return Tokenised(list(compress(input_ids, real)), list(compress(in_loss, real)))

    def texts(self, content: Tokenised) -> Sequence[str]:  # noqa: ARG002
        """None."""
        return []

    def encode(self, contents: Sequence[Tokenised], tokenizer: Any, writing: Writing) -> list[Tokenised | RowError]:  # noqa: ARG002
        """The rows themselves; one with an id beyond the vocabulary cannot be used."""
        vocabulary = len(tokenizer)
        found: list[Tokenised | RowError] = []
        for tokenised in contents:
            wrong = next((token for token in tokenised.ids if not 0 <= token < vocabulary), None)
            beyond = RowError(f"token {wrong} is beyond the vocabulary of {vocabulary:,}")
            found.append(tokenised if wrong is None else beyond)
        return found
