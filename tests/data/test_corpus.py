"""A source is tokenised once for each content, and its bad rows are told all together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from peftkit.data import corpus as corpora
from peftkit.data.corpus import Corpus, load_corpus
from peftkit.errors import DataError, FieldError, RowsError
from peftkit.recipe.schema import Data


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def load(path: Path, tokenizer: Any, **fields: Any) -> Corpus:
    data = Data.model_validate({"train": {"path": str(path)}, **fields})
    return load_corpus(data.train_sources[0], data, tokenizer, "data.train")


def text_of(corpus: Corpus, tokenizer: Any) -> str:
    return str(tokenizer.decode(corpus.documents.input_ids))


def test_a_second_time_nothing_is_tokenised(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\n\ntwo\n", encoding="utf-8")
    first = load(path, tokenizer)

    monkeypatch.setattr(corpora, "encode", lambda *_: pytest.fail("tokenised again"))
    renamed = path.rename(tmp_path / "other.txt")
    second = load(renamed, tokenizer)

    assert text_of(second, tokenizer) == text_of(first, tokenizer) == "one<|end|>two<|end|>"
    assert (second.reading.rows, second.reading.empty) == (3, 1)


def test_a_file_that_changed_is_tokenised_anew_even_with_its_old_time(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "text.txt"
    path.write_text("old\n", encoding="utf-8")
    before = path.stat()
    load(path, tokenizer)

    path.write_text("new\n", encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert text_of(load(path, tokenizer), tokenizer) == "new<|end|>"


@pytest.mark.parametrize(
    "change",
    [
        {"sample_by": "document"},
        {"train": {"path": "", "limit": 1}},
        {"format": "text"},  # then columns of other formats are ignored
        {"ignore_columns": ["id"]},
    ],
)
def test_what_changes_the_documents_changes_what_is_kept(
    change: dict[str, Any], tmp_path: Path, tokenizer: Any, cache: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n", encoding="utf-8")
    load(path, tokenizer)
    if "train" in change:
        change = {"train": {"path": str(path), "limit": 1}}

    data = Data.model_validate({"train": {"path": str(path)}, **change})
    load_corpus(data.train_sources[0], data, tokenizer, "data.train")

    assert len(list(cache.iterdir())) == 2


def test_neither_length_nor_packing_nor_seed_tokenises_again(tmp_path: Path, tokenizer: Any, cache: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n", encoding="utf-8")
    for change in ({}, {"max_length": 7}, {"packing": False}, {"seed": 1}):
        load(path, tokenizer, **change)

    assert len(list(cache.iterdir())) == 1


def bad_rows(tmp_path: Path, count: int) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = ['{"prompt": "q", "completion": "a"}'] * 4 + ['{"prompt": "q"}'] * count
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_all_bad_rows_are_counted_and_the_first_ten_named(tmp_path: Path, tokenizer: Any, cache: Path) -> None:
    with pytest.raises(RowsError) as raised:
        load(bad_rows(tmp_path, 12), tokenizer)

    lines = raised.value.lines()
    assert lines[:10] == [f"{tmp_path}/rows.jsonl:{number}: completion is missing." for number in range(5, 15)]
    assert lines[10].startswith(f"{tmp_path}/rows.jsonl: 12 of 16 rows cannot be used; the first 10 stand above.")
    assert "data.on_bad_rows: skip" in lines[10]
    assert not any(cache.iterdir())


def test_bad_rows_that_are_skipped_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    found = load(bad_rows(tmp_path, 12), tokenizer, on_bad_rows="skip")

    assert (len(found.documents), found.reading.bad, len(found.reading.first_bad)) == (4, 12, 10)


def test_to_skip_every_row_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("no json\nnone either\n", encoding="utf-8")

    with pytest.raises(RowsError, match="2 of 2 rows cannot be used"):
        load(path, tokenizer, on_bad_rows="skip")


def test_a_source_without_rows_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n", encoding="utf-8")

    with pytest.raises(DataError, match="has no rows"):
        load(path, tokenizer)


def test_prompts_are_not_split_from_their_completions(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": "a"}) + "\n", encoding="utf-8")

    with pytest.raises(FieldError, match=r"data\.truncation: split would cut a prompt"):
        load(path, tokenizer, truncation="split")


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\n", encoding="utf-8")
    (tmp_path / "file").touch()
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "file"))

    assert text_of(load(path, tokenizer), tokenizer) == "one<|end|>"
    assert "tokens cannot be kept" in capsys.readouterr().err
