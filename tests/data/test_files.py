"""A file is read in the shape that people have it, or refused in words that say what it is."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from peftkit.data.files import Row, file_rows
from peftkit.errors import DataError
from peftkit.recipe.schema import Data, Source

ROWS = [{"prompt": "Hi", "completion": "Hello"}, {"prompt": "Bye", "completion": "So long"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(path: Path, **fields: Any) -> list[Row]:
    return list(file_rows(str(path), Data(train=Source(path=str(path)), **fields)))


SHAPES: dict[str, tuple[str, str]] = {
    "lines": ("a.jsonl", LINES),
    "the other suffix of lines": ("a.ndjson", LINES),
    "lines that end in commas": ("a.jsonl", LINES.replace("}\n", "},\n")),
    "objects without a break": ("a.jsonl", LINES.replace("\n", "")),
    "a list on a line": ("a.jsonl", json.dumps(ROWS)),
    "objects over several lines": ("a.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
    "a list": ("a.json", json.dumps(ROWS)),
    "several objects over several lines": ("a.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
    "a list within an object": ("a.json", json.dumps({"version": 1, "data": ROWS})),
    "columns": ("a.json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]})),
    "columns by number, as of pandas": (
        "a.json",
        json.dumps({name: {str(number): row[name] for number, row in enumerate(ROWS)} for name in ROWS[0]}),
    ),
    "commas": ("a.csv", "prompt,completion\nHi,Hello\nBye,So long\n"),
    "semicolons": ("a.csv", "prompt;completion\nHi;Hello\nBye;So long\n"),
    "bars": ("a.csv", "prompt|completion\nHi|Hello\nBye|So long\n"),
    "tabs": ("a.tsv", "prompt\tcompletion\nHi\tHello\nBye\tSo long\n"),
    "a line that names the separator": ("a.csv", "sep=;\nprompt;completion\nHi;Hello\nBye;So long\n"),
    "spaces behind commas": ("a.csv", 'prompt, completion\nHi, "Hello"\nBye, So long\n'),
    "commas at the ends": ("a.csv", "prompt,completion,,\nHi,Hello,,\nBye,So long,,\n"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_read_in_every_shape_that_can_mean_one_thing(shape: str, tmp_path: Path) -> None:
    name, content = SHAPES[shape]
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")

    assert [(row.values, row.problem) for row in read(path)] == [(row, None) for row in ROWS]


def zstd(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, "zstd", asbytes=True))


COMPRESSIONS = pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)],
)


@COMPRESSIONS
@pytest.mark.parametrize("parts", [1, 2])
def test_compressed_files_are_read_like_others(
    suffix: str, compress: Callable[[bytes], bytes], parts: int, tmp_path: Path
) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(compress(LINES.encode()) * parts)  # as `cat` joins two files

    rows = read(path)

    assert [row.values for row in rows] == ROWS * parts
    assert rows[1].place == f"{path}:2"


@COMPRESSIONS
def test_a_compressed_file_that_is_cut_off_is_an_error(
    suffix: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(compress(LINES.encode())[:-12])

    with pytest.raises(DataError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", LINES.encode("utf-16"), "is UTF-16 or binary, not UTF-8"),
        ("a.csv", "prompt,completion\n".encode("utf-16-le"), "is UTF-16 or binary, not UTF-8"),
        ("a.csv", b"prompt,or;completion\nHi,x;Hello\n", "its heading has ',' and ';'.*data.delimiter"),
    ],
)
def test_what_cannot_be_read_is_refused_by_what_it_is(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_the_recipe_may_name_the_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,or;completion\nHi;Hello\n", encoding="utf-8")

    assert [row.values for row in read(tmp_path / "a.csv", delimiter=";")] == [
        {"prompt,or": "Hi", "completion": "Hello"}
    ]


def test_an_object_that_is_not_closed_is_one_bad_row_among_lines_and_the_rest_of_a_spread_file(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text(LINES + '{"prompt": "Hm",\n' + LINES, encoding="utf-8")
    spread = tmp_path / "spread.jsonl"
    spread.write_text(json.dumps(ROWS[0], indent=1) + '\n{"prompt": "Hm",\n', encoding="utf-8")

    assert [row.problem is None for row in read(lines)] == [True, True, False, True, True]
    assert [(row.place, row.problem is None) for row in read(spread)] == [(f"{spread}:1", True), (f"{spread}:5", False)]


def test_one_conversation_is_one_row(tmp_path: Path) -> None:
    conversation = {"messages": [{"role": "user", "content": "Hi"}]}
    (tmp_path / "a.json").write_text(json.dumps(conversation), encoding="utf-8")

    assert [row.values for row in read(tmp_path / "a.json")] == [conversation]
