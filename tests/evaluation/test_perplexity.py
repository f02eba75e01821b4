"""Perplexity is what an independent computation gives, whatever the batch size and the stride."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import peftkit
from peftkit.data.grammar import corpus
from peftkit.data.prepare import Prepared, prepare_validation
from peftkit.evaluation.perplexity import DocumentLosses, difference, measure_documents, windows_of
from peftkit.recipe.schema import Data

TINY = Path(peftkit.__file__).parent / "assets" / "tiny-gpt2"
LONG = 40


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


def text_data(folder: Path, *, document: bool, max_length: int = LONG) -> Data:
    """A text of a few thousand tokens, as one document or a document a line."""
    path = folder / "text.txt"
    path.write_text("\n".join(corpus("validation")[:60]), encoding="utf-8")
    source = {"path": str(path)}
    sample_by = "document" if document else "line"
    return Data.model_validate(
        {"train": source, "validation": source, "format": "text", "max_length": max_length, "sample_by": sample_by}
    )


def prepared(data: Data, tokenizer: Any) -> Prepared:
    found = prepare_validation(data, tokenizer)
    assert found is not None
    return found


@torch.no_grad()
def straightforward(model: Any, ids: torch.Tensor, max_length: int, stride: int) -> tuple[float, int]:
    """Nats and tokens of a document, a window at a time, by the textbook."""
    total, count, done = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        logits = model(ids[None, begin:end]).logits[0].double()
        for place in range(max(done, begin + 1), end):
            total -= float(functional.log_softmax(logits[place - begin - 1], dim=-1)[ids[place]])
            count += 1
        done = end
        if end == len(ids):
            break
    return total, count


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("stride", [LONG, LONG // 2, 13])
def test_perplexity_is_that_of_an_independent_computation(
    stride: int, batch_size: int, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    data = text_data(tmp_path, document=True)
    documents = prepared(data, tokenizer)
    ids = torch.from_numpy(np.array(documents.parts[0].corpus.documents.tokens_of(0))).long()
    nats, tokens = straightforward(model, ids, LONG, stride)

    found = measure_documents(model, documents, data, 0, batch_size, "fp32", stride).loss

    assert found.tokens == tokens
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-6)


def test_a_shorter_stride_gives_each_token_more_before_it(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    data = text_data(tmp_path, document=True)
    documents = prepared(data, tokenizer)

    apart, half = (measure_documents(model, documents, data, 0, 8, "fp32", stride).loss for stride in (LONG, LONG // 2))

    assert half.tokens > apart.tokens
    assert half.perplexity < apart.perplexity


def test_without_a_stride_documents_are_laid_out_as_in_training(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    data = text_data(tmp_path, document=False, max_length=16)
    documents = prepared(data, tokenizer)

    found = measure_documents(model, documents, data, 0, 8, "fp32")

    assert documents.counts.split_documents
    assert found.loss.tokens == documents.counts.label_tokens
    assert len(found.nats) == documents.counts.documents


@given(length=st.integers(1, 300), max_length=st.integers(1, 60), stride=st.integers(1, 60))
def test_windows_score_every_token_once(length: int, max_length: int, stride: int) -> None:
    stride = min(stride, max_length)

    windows = list(windows_of(length, max_length, stride))

    scored = [place for window in windows for place in range(window.scored, window.end)]
    assert scored == list(range(length))
    assert all(window.end - window.begin <= max_length for window in windows)
    assert all(window.begin <= window.scored for window in windows)


def drawn(rng: np.random.Generator, documents: int, mean: float) -> DocumentLosses:
    """Documents of unequal length whose tokens have a loss around a mean, and a document's more than that in common."""
    tokens = rng.integers(5, 50, documents)
    rates = mean + rng.normal(0, 0.5, documents)
    return DocumentLosses(rates * tokens, tokens)


def test_the_standard_error_is_the_spread_over_other_documents() -> None:
    rng = np.random.default_rng(1)
    samples = [drawn(rng, 200, 3.0) for _ in range(400)]

    spread = float(np.std([sample.loss.mean for sample in samples]))
    errors = [sample.standard_error or 0.0 for sample in samples]

    assert float(np.mean(errors)) == pytest.approx(spread, rel=0.1)


def test_one_document_has_no_standard_error() -> None:
    assert DocumentLosses(np.array([3.0]), np.array([2])).standard_error is None


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for draw in range(200):
        theirs = drawn(rng, 60, 3.0)
        gaps = rng.normal(0.05, 0.2, 60)
        ours = DocumentLosses(theirs.nats + gaps * theirs.tokens, theirs.tokens)
        found = difference(ours, theirs, seed=draw)
        held += found.low <= 0.05 <= found.high

    assert 0.90 <= held / 200 <= 0.99


def test_a_difference_says_whether_it_may_be_chance() -> None:
    rng = np.random.default_rng(3)
    theirs = drawn(rng, 100, 3.0)
    worse = DocumentLosses(theirs.nats + 0.1 * theirs.tokens, theirs.tokens)
    other = DocumentLosses(theirs.nats + rng.normal(0, 1, 100), theirs.tokens)

    assert difference(worse, theirs).nats == pytest.approx(0.1)
    assert not difference(worse, theirs).is_noise
    assert difference(other, theirs).is_noise
    assert difference(theirs, theirs).is_noise
