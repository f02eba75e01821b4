"""A stream gives what a data set gives, window by window, and nothing is kept of it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from peftkit.data import stream as streams
from peftkit.data.prepare import prepare
from peftkit.data.stream import Stream
from peftkit.errors import RowsError
from peftkit.recipe.schema import Data


def data_of(*paths: Path, **fields: Any) -> Data:
    sources = [{"path": str(path)} for path in paths]
    return Data.model_validate({"train": sources, "max_length": 16, **fields})


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {number}\n" for number in range(50)), encoding="utf-8")
    return path


def tokens_of(rows: Any) -> list[int]:
    return sorted(int(token) for row in rows for token in row["input_ids"])


def test_a_stream_has_every_token_of_every_source(lines: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "WINDOW", 10)
    data = data_of(lines, lines, streaming=True)
    whole = prepare(data_of(lines, lines), tokenizer).train.sequences

    streamed = prepare(data, tokenizer).train

    assert isinstance(streamed.dataset, Stream)
    assert tokens_of(streamed.dataset.one_pass(0)) == tokens_of(whole[index] for index in range(len(whole)))
    assert streamed.dataset.record() == {"rows": 100, "empty_rows": 0, "bad_rows": 0}
    assert streamed.summary().startswith("a stream, which begins with 50 documents")


def test_each_pass_is_shuffled_anew_and_each_time_alike(lines: Path, tokenizer: Any) -> None:
    stream = Stream(data_of(lines, streaming=True), tokenizer)

    def order(number: int) -> list[list[int]]:
        return [row["input_ids"].tolist() for row in stream.one_pass(number)]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1))


def test_a_stream_goes_on_with_its_next_pass(lines: Path, tokenizer: Any) -> None:
    stream = Stream(data_of(lines, streaming=True), tokenizer)
    passes = [row["input_ids"].tolist() for number in range(2) for row in stream.one_pass(number)]

    assert [row["input_ids"].tolist() for row in islice(stream, len(passes))] == passes


def test_a_stream_keeps_nothing_on_the_disk(
    lines: Path, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))

    assert list(Stream(data_of(lines, streaming=True), tokenizer).one_pass(0))
    assert not (tmp_path / "cache").exists()


def test_a_bad_row_stops_a_stream_or_is_counted(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}\n{"text": "b"}\n', encoding="utf-8")

    with pytest.raises(RowsError, match=r"rows\.jsonl:2: text is a number"):
        prepare(data_of(path, streaming=True), tokenizer)
    skipping = Stream(data_of(path, streaming=True, on_bad_rows="skip"), tokenizer)
    assert list(skipping.one_pass(0))
    assert skipping.record()["bad_rows"] == 1
