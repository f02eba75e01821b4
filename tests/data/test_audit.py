"""The audit's figures are those that one counts by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftkit.data.audit import audit
from peftkit.errors import FieldError
from peftkit.recipe.schema import Data

TRAIN = [("ask:", "yes"), ("long ask:", "no"), ("ask:", "yes"), ("x", "")]
VALIDATION = [("ask:", "yes"), ("other:", "maybe")]


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    lines = [json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def data_of(tmp_path: Path, **fields: Any) -> Data:
    return Data.model_validate(
        {
            "train": {"path": write(tmp_path / "train.jsonl", TRAIN)},
            "validation": {"path": write(tmp_path / "validation.jsonl", VALIDATION)},
            "format": "completion",
            "max_length": 32,
            **fields,
        }
    )


def test_every_figure_is_the_one_counted_by_hand(tmp_path: Path, tokenizer: Any) -> None:
    # a token a byte: "ask:yes" and "long ask:no", each with its end, are 8, 12 and 8 tokens
    train = audit(data_of(tmp_path), tokenizer, batch_size=2).train

    assert (train.counts.documents, train.counts.empty_documents, train.duplicates) == (3, 1, 1)
    assert train.length_quantiles == {"50%": 8, "90%": 8, "99%": 8, "longest": 12}
    assert train.counts.tokens == 28
    assert train.taught == pytest.approx((4 + 3 + 4) / 28)
    assert train.filled == pytest.approx(28 / (12 * 2 + 8))
    assert train.ends_taught == 1


def test_what_stands_in_train_and_validation_is_counted(tmp_path: Path, tokenizer: Any) -> None:
    assert audit(data_of(tmp_path), tokenizer, batch_size=2).leaked == 1


def test_the_documents_shown_are_apart_in_given_and_taught(tmp_path: Path, tokenizer: Any) -> None:
    first, second = audit(data_of(tmp_path), tokenizer, batch_size=2, show=2).shown

    assert (first.given, first.taught) == ("ask:", "yes<|end|>")
    assert (second.given, second.taught) == ("long ask:", "no<|end|>")


def test_ends_that_are_cut_off_are_not_taught(tmp_path: Path, tokenizer: Any) -> None:
    train = audit(data_of(tmp_path, max_length=10), tokenizer, batch_size=2).train

    assert train.ends_taught == pytest.approx(2 / 3)
    assert (train.counts.cut_documents, train.counts.cut_tokens) == (1, 2)


def test_packed_text_fills_its_slots(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "text.txt").write_text("abc\n" * 8, encoding="utf-8")
    data = Data.model_validate({"train": {"path": str(tmp_path / "text.txt")}, "max_length": 16})

    train = audit(data, tokenizer, batch_size=2).train

    assert train.packed
    assert (train.filled, train.duplicates, train.ends_taught) == (1.0, 7, 1.0)


def test_data_that_teaches_nothing_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(FieldError, match="teaches anything"):
        audit(data_of(tmp_path, max_length=2), tokenizer, batch_size=2)
