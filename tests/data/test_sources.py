"""Rows come from files of every kind as they are now, each with its place, and a bad one with its reason."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow
import pytest
from datasets import Dataset

from peftkit.data.files import Row
from peftkit.data.sources import open_rows
from peftkit.errors import DataError, FieldError
from peftkit.recipe.schema import Data, Source

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c, d", "completion": 'e "f"\nagain'}]


def rows_of(path: Path, **fields: object) -> list[Row]:
    sample_by = fields.pop("sample_by", "line")
    source = Source.model_validate({"path": str(path), **fields})
    return list(open_rows(source, Data.model_validate({"train": source, "sample_by": sample_by}), "data.train"))


def problems_of(path: Path) -> list[str]:
    return [f"{Path(row.place).name}: {row.problem}" for row in rows_of(path) if row.problem]


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
    assert [row.values for row in rows_of(write(tmp_path / f"rows{suffix}"))] == ROWS


def test_a_row_knows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,"two\nlines"\n3,4\n', encoding="utf-8")

    assert [Path(row.place).name for row in rows_of(path)] == ["rows.csv:2", "rows.csv:4"]


def test_lines_of_objects_are_read_under_the_suffix_json_too(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl").rename(tmp_path / "rows.json")

    assert [row.values for row in rows_of(path)] == ROWS


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", ["one", "two", "", "three"]),
        ("paragraph", ["one\ntwo", "three"]),
        ("document", ["one\ntwo\n\nthree"]),
    ],
)
def test_a_text_file_is_taken_by_line_paragraph_or_whole(sample_by: str, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\nthree\n")

    assert [row.values["text"] for row in rows_of(path, sample_by=sample_by)] == expected


def test_characters_that_only_look_like_ends_of_lines_end_none(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\u2028still one\x0cand still\n", encoding="utf-8")

    assert len(rows_of(path)) == 1


BAD: dict[str, tuple[str, bytes, list[str]]] = {
    "bad JSON": (
        "rows.jsonl",
        b'{"text": "fine"}\n\n{"text": broken}\n{"text": "fine"}\n["a"]\n{"text": "cut o',
        [
            "rows.jsonl:3: is not JSON: Expecting value at column 10",
            "rows.jsonl:5: is a JSON text, not an object with named values",
            "rows.jsonl:6: is not JSON: Unterminated string starting at at column 10",
        ],
    ),
    "no UTF-8": (
        "rows.jsonl",
        b'{"text": "fine"}\n{"text": "caf\xe9"}\n',
        ["rows.jsonl:2: is not UTF-8: byte 0xe9 at column 14"],
    ),
    "text in UTF-16": ("rows.txt", "ab\n".encode("utf-16-le"), ["rows.txt:2: is not UTF-8"]),
    "too few and too many values": (
        "rows.csv",
        b"a,b\n1,2\n3\n4,5,6\n",
        ["rows.csv:3: has 1 values, but the heading has 2", "rows.csv:4: has 3 values, but the heading has 2"],
    ),
    "an open quote": ("rows.csv", b'a,b\n1,2\n"3,4\n', ["rows.csv:3: is not CSV: unexpected end of data"]),
    "an item that is no object": ("rows.json", b'[{"a": 1}, 2]', ["rows.json, row 2: is a JSON value"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_read_is_named_and_those_around_it_are_read(case: str, tmp_path: Path) -> None:
    name, content, expected = BAD[case]
    (tmp_path / name).write_bytes(content)
    if case == "text in UTF-16":
        (tmp_path / name).write_bytes(b"fine\n\xff\xfe" + content)

    found = problems_of(tmp_path / name)

    assert len(found) == len(expected)
    assert all(problem.startswith(wanted) for problem, wanted in zip(found, expected, strict=True))
    assert any(row.problem is None for row in rows_of(tmp_path / name))


WHOLE: dict[str, tuple[str, bytes, str]] = {
    "an empty file": ("rows.txt", b"", "rows.txt: is empty"),
    "a list that is cut off": ("rows.json", b'[{"a": 1},\n', r"rows.json:\d: is not JSON"),
    "JSON that is no UTF-8": ("rows.json", b'[\n{"a": "\xff"}]', "rows.json:2: is not UTF-8"),
    "a table that is none": ("rows.parquet", b"no parquet at all", "rows.parquet: is not Parquet"),
    "a heading that says a name twice": ("rows.csv", b"a,a\n1,2\n", "rows.csv:1: has two columns named a"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_file_that_cannot_be_read_at_all_is_an_error(case: str, tmp_path: Path) -> None:
    name, content, message = WHOLE[case]
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name)


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    assert [row.values for row in rows_of(write(tmp_path / "rows.jsonl"), limit=1)] == ROWS[:1]


def test_files_of_several_kinds_are_one_source(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / "a.jsonl")), str(write(tmp_path / "b.csv"))]
    source = Source(path=paths)

    assert [row.values for row in open_rows(source, Data(train=source), "data.train")] == ROWS + ROWS


def test_the_built_in_world_has_a_corpus_and_a_task() -> None:
    task = Source(dataset="builtin:grammar", name="task")

    rows = open_rows(task, Data(train=task), "data.validation")

    assert (rows.total, rows.name) == (200, "builtin:grammar, task, validation")
    assert list(next(iter(rows)).values) == ["prompt", "completion"]


def test_what_tells_files_apart_is_their_content_and_not_their_time(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    source = Source(path=str(path))
    before, first = path.stat(), open_rows(source, Data(train=source), "data.train").identity

    path.write_text(path.read_text(encoding="utf-8").replace("a", "x"), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert open_rows(source, Data(train=source), "data.train").identity != first


def test_a_data_set_in_a_folder_is_read_and_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = Source(dataset=str(tmp_path / "set"), split="train")

    for streaming in (False, True):
        rows = open_rows(source, Data(train=source), "data.train", streaming=streaming)
        assert [row.values["text"] for row in rows] == ["one", "two"]
        assert [row.values["text"] for row in rows] == ["one", "two"]


def test_a_data_set_that_cannot_be_fetched_is_an_error_about_its_field() -> None:
    source = Source(dataset="nobody/nothing-of-the-kind")

    with pytest.raises(FieldError, match=r"data\.train\.dataset: nobody/nothing-of-the-kind is not on this machine"):
        open_rows(source, Data(train=source), "data.train")


def test_a_file_that_is_not_there_or_of_no_kind_is_an_error_about_its_field(tmp_path: Path) -> None:
    (tmp_path / "rows.pdf").touch()
    sources: list[Any] = [Source(path=str(tmp_path / name)) for name in ("none.txt", "rows.pdf")]

    for source, message in zip(sources, ("there is no file", "is of no kind that can be read"), strict=True):
        with pytest.raises(FieldError, match=message):
            open_rows(source, Data(train=source), "data.train")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a folder of files, on a server of this machine."""
    pytest.importorskip("aiohttp", reason="fsspec's driver for https:// is not installed")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_at_an_address_is_fetched_once_and_again_when_it_has_changed(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    source = Source(path=f"{served}/rows.jsonl")
    write(tmp_path / "rows.jsonl")

    first = open_rows(source, Data(train=source), "data.train")
    second = open_rows(source, Data(train=source), "data.train")
    (tmp_path / "rows.jsonl").write_text('{"text": "another"}\n', encoding="utf-8")
    third = open_rows(source, Data(train=source), "data.train")

    assert [row.values for row in first] == ROWS
    assert next(iter(first)).place == f"{served}/rows.jsonl:1"
    assert first.identity == second.identity != third.identity
    assert len(list((tmp_path / "cache" / "remote").iterdir())) == 2


def test_a_stream_of_an_address_leaves_no_copy(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl.zst").write_bytes(
        pyarrow.compress((tmp_path / "rows.jsonl").read_bytes(), "zstd", asbytes=True)
    )

    for name in ("rows.jsonl", "rows.jsonl.zst"):
        source = Source(path=f"{served}/{name}")
        assert [row.values for row in open_rows(source, Data(train=source), "data.train", streaming=True)] == ROWS
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9/rows.jsonl", "cannot be fetched"),
        ("strange://place/rows.jsonl", "cannot be fetched: Protocol not known"),
        ("dropbox://place/rows.jsonl", "needs a library that is not installed"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_an_address_that_cannot_be_reached_is_an_error_about_its_field(
    address: str, message: str, streaming: bool
) -> None:
    source = Source(path=address)

    with pytest.raises(FieldError, match=message) as caught:
        open_rows(source, Data(train=source), "data.train", streaming=streaming)

    assert caught.value.field == "data.train.path"
