"""The sample that is kept with an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit.adapters.proof import Sample
from peftkit.errors import TargetError


def test_random_tokens_are_the_same_every_time_and_all_over_the_vocabulary() -> None:
    sample = Sample.random(1024)
    ids = [token for row in sample.input_ids for token in row]

    assert sample == Sample.random(1024)
    assert sample.tokens == 128
    assert not sample.has_text
    assert min(ids) < 100 < 900 < max(ids) < 1024
    assert len(set(ids)) > 100


def test_a_trained_adapter_keeps_some_of_its_validation_rows(runs: dict[str, Path]) -> None:
    sample = Sample.read(runs["lora"] / "adapter", 1024)

    assert sample.source == "validation data"
    assert len(sample.input_ids) == 8
    assert all(0 < len(row) <= 64 for row in sample.input_ids)
    assert all(label in (-100, token) for row, labels in zip(sample.input_ids, sample.labels, strict=True)
               for token, label in zip(row, labels, strict=True))  # fmt: skip
    assert any(label != -100 for labels in sample.labels for label in labels)


def test_without_one_there_are_random_tokens(tmp_path: Path) -> None:
    assert Sample.read(tmp_path, 50) == Sample.random(50)


@pytest.mark.parametrize(
    "values",
    [
        {"source": "text", "input_ids": [[1, 2]], "labels": [[1]]},
        {"source": "text", "input_ids": [[1, 99]], "labels": [[1, 99]]},
        {"source": "text", "input_ids": [], "labels": []},
        {"source": "text", "input_ids": [[]], "labels": [[]]},
        {"input_ids": [[1]], "labels": [[1]]},
        [],
    ],
)
def test_a_damaged_one_is_an_error(values: object, tmp_path: Path) -> None:
    (tmp_path / "sample.json").write_text(json.dumps(values), encoding="utf-8")

    with pytest.raises(TargetError, match=r"sample\.json: is damaged"):
        Sample.read(tmp_path, 50)
