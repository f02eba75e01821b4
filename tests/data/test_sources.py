"""Rows come from files of every kind as they are now, and a bad file is named with its line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from datasets import Dataset

from peftkit.data.read import read_rows, source_identity
from peftkit.errors import DataError, FieldError
from peftkit.recipe.schema import Data, Source

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c, d", "completion": 'e "f"'}]


def rows_of(path: Path, **fields: object) -> Dataset:
    source = Source.model_validate({"path": str(path), **fields})
    return read_rows(source, Data(train=source), "data.train")


def write(path: Path) -> Path:
    table = Dataset.from_list(ROWS)
    if path.suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    elif path.suffix == ".parquet":
        table.to_parquet(str(path))
    else:
        table.to_csv(str(path), index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    assert rows_of(write(tmp_path / f"rows{suffix}")).to_list() == ROWS


@pytest.mark.parametrize(
    ("sample_by", "expected"), [("line", ["one", "two", "", "three"]), ("paragraph", ["one\ntwo", "three"])]
)
def test_a_text_file_is_taken_by_line_or_by_paragraph(sample_by: str, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n\nthree\n", encoding="utf-8")
    source = Source(path=str(path))
    data = Data.model_validate({"train": source, "sample_by": sample_by})

    rows = read_rows(source, data, "data.train")

    assert [text.strip() for text in rows["text"]] == expected


def test_a_file_that_changed_is_read_anew_even_with_its_old_time(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("old\n", encoding="utf-8")
    before = path.stat()
    assert rows_of(path)["text"][0] == "old"

    path.write_text("new\n", encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert rows_of(path)["text"][0] == "new"


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    assert len(rows_of(write(tmp_path / "rows.jsonl"), limit=1)) == 1


def test_the_built_in_world_has_a_corpus_and_a_task() -> None:
    task = Source(dataset="builtin:grammar", name="task")

    rows = read_rows(task, Data(train=task, format="completion"), "data.validation")

    assert rows.column_names == ["prompt", "completion"]
    assert source_identity(task, rows) == {"dataset": "builtin:grammar", "name": "task", "rows": 200}


def test_what_tells_files_apart_is_their_content(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    source = Source(path=str(path))
    first = source_identity(source, rows_of(path))

    path.write_text(path.read_text(encoding="utf-8").replace("b", "x"), encoding="utf-8")

    assert source_identity(source, rows_of(path)) != first


def test_a_bad_line_of_json_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "fine"}\n{"text": broken}\n', encoding="utf-8")

    with pytest.raises(DataError, match=r"rows\.jsonl:3: is not a JSON object"):
        rows_of(path)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.touch()

    with pytest.raises(DataError, match="is empty"):
        rows_of(path)


def test_files_of_two_kinds_are_an_error(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / "a.jsonl")), str(write(tmp_path / "b.csv"))]
    source = Source(path=paths)

    with pytest.raises(FieldError, match="files of one kind"):
        read_rows(source, Data(train=source), "data.train")


def test_a_data_set_that_cannot_be_fetched_is_an_error_about_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    source = Source(dataset="nobody/nothing-of-the-kind")

    with pytest.raises(FieldError, match=r"data\.train\.dataset: nobody/nothing-of-the-kind cannot be had"):
        read_rows(source, Data(train=source), "data.train")
