"""`sample.json`: a few of the run's own held-out sequences, kept with what it made to compare logits on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftkit.errors import TargetError
from peftkit.storage import read_json

__all__ = ["SAMPLE_NAME", "Sample"]

SAMPLE_NAME = "sample.json"
_RANDOM = "random tokens"
_RANDOM_ROWS, _RANDOM_TOKENS = 4, 32
_MULTIPLIER, _INCREMENT, _MODULUS = 1664525, 1013904223, 2**32


@dataclass(frozen=True)
class Sample:
    """Token ids to run two models on."""

    source: str
    """What they are: `validation data`, `training data` or `random tokens`."""

    input_ids: list[list[int]]
    """Rows of their own lengths, each one document from its beginning."""

    labels: list[list[int]]
    """The same rows, with -100 where a token is not taught: what a perplexity is measured on."""

    @property
    def has_text(self) -> bool:
        """Whether a perplexity on it means anything."""
        return self.source != _RANDOM

    @property
    def tokens(self) -> int:
        """How many there are."""
        return sum(len(row) for row in self.input_ids)

    @classmethod
    def random(cls, vocabulary: int) -> Sample:
        """Token ids spread over a vocabulary, the same on every machine, for an adapter that brings no sample.

        They come from the generator of Press et al. (Numerical Recipes, section 7.1), which needs no library.
        """
        state, ids = 1, []
        for _ in range(_RANDOM_ROWS * _RANDOM_TOKENS):
            state = (_MULTIPLIER * state + _INCREMENT) % _MODULUS
            ids.append(state * vocabulary // _MODULUS)
        rows = [ids[start : start + _RANDOM_TOKENS] for start in range(0, len(ids), _RANDOM_TOKENS)]
        return cls(_RANDOM, rows, rows)

    @classmethod
    def read(cls, folder: Path, vocabulary: int) -> Sample:
        """The sample in a folder; random tokens where there is none.

        Raises:
            TargetError: it is damaged, or has tokens that the vocabulary has not.
        """
        place = folder / SAMPLE_NAME
        if not place.exists():
            return cls.random(vocabulary)
        try:
            values: dict[str, Any] = read_json(place)
            sample = cls(values["source"], values["input_ids"], values["labels"])
            shapes_agree = [len(row) for row in sample.input_ids] == [len(row) for row in sample.labels]
            known = all(0 <= token < vocabulary for row in sample.input_ids for token in row)
            if not (sample.input_ids and all(sample.input_ids) and shapes_agree and known):
                raise ValueError("its rows are not token ids with labels")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TargetError("is damaged.", where=str(place), remedy="Copy it again, or remove it.") from error
        return sample

    @classmethod
    def of(cls, source: str, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Sample:
        """A sample of rows of token ids with their labels."""
        ids = [[int(token) for token in row] for row, _ in rows]
        return cls(source, ids, [[int(label) for label in labels] for _, labels in rows])

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return asdict(self)
