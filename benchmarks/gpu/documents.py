"""Documents of random tokens, as long as real ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["Document", "article_documents", "e2e_documents", "full_documents", "mean_context", "write_documents"]

_FIRST_TOKEN, _TOKENS = 2, 1024
"""Of the embedded tokenizer, without end-of-text and padding."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Document:
    """Tokens, of which the first are a prompt that is not in the loss."""

    ids: list[int]
    prompt: int = 0


def article_documents(count: int, longest: int, seed: int = 0) -> list[Document]:
    """Lines as WikiText-2 has them: 35% are empty, 16% headings, and the others paragraphs.

    Measured on its validation part with GPT-2's tokenizer: headings have 9 tokens on average, and the logarithm of a
    paragraph's length has the mean 4.62 and the standard deviation 0.87.
    """
    rng = np.random.default_rng(seed)
    kinds = rng.random(count)
    paragraphs = np.exp(rng.normal(4.62, 0.87, count)).astype(np.int64)
    headings = rng.integers(5, 14, count)
    lengths = np.where(kinds < 0.35, 0, np.where(kinds < 0.51, headings, paragraphs))
    return _documents(np.minimum(lengths, longest), rng)


def e2e_documents(count: int, seed: int = 0) -> list[Document]:
    """Rows as E2E NLG has them: attributes of 30 tokens with a deviation of 7, and a sentence of 28 with one of 8."""
    rng = np.random.default_rng(seed)
    prompts = rng.normal(30, 7, count).clip(14, 40).astype(np.int64)
    completions = rng.normal(28, 8, count).clip(12, 47).astype(np.int64)
    return [
        Document(document.ids, int(prompt))
        for document, prompt in zip(_documents(prompts + completions, rng), prompts, strict=True)
    ]


def full_documents(count: int, length: int, seed: int = 0) -> list[Document]:
    """Documents that fill a row each."""
    return _documents(np.full(count, length), np.random.default_rng(seed))


def mean_context(documents: Sequence[Document], longest: int) -> float:
    """How many tokens a token attends to on average within its document, of at most `longest`, under a causal mask."""
    lengths = np.array([min(len(document.ids), longest) for document in documents], dtype=np.float64)
    return float((lengths * (lengths + 1) / 2).sum() / lengths.sum())


def write_documents(path: Path, documents: Sequence[Document]) -> Path:
    """Write those that are not empty as rows of tokens, of which the prompt has no labels."""
    rows = (
        {"input_ids": each.ids, "labels": [-100] * each.prompt + each.ids[each.prompt :]}
        for each in documents
        if each.ids
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _documents(lengths: Ints, rng: np.random.Generator) -> list[Document]:
    return [Document(rng.integers(_FIRST_TOKEN, _TOKENS, int(length)).tolist()) for length in lengths]
