"""A data set of the hub is read from a cache laid out as the hub's, without a network, at the commit asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from peftkit.data.sources import open_rows
from peftkit.errors import FieldError, UnfetchedError
from peftkit.recipe.schema import Data, Source

FIRST, SECOND = "1" * 40, "2" * 40
NAME = "someone/rows"
CARD = """\
---
configs:
- config_name: colours
  data_files:
  - {split: train, path: "colours/train-*.csv"}
  - {split: validation, path: colours/validation.csv}
  sep: ";"
- config_name: plain
  data_files: plain/*.csv
---
"""


@pytest.fixture
def snapshot(hub_cache: Path) -> Callable[..., Path]:
    """Makes a commit of a data set in the cache, with a branch that points to it."""

    def make(commit: str, files: dict[str, str], branch: str = "main") -> Path:
        repository = hub_cache / "datasets--someone--rows"
        for name, content in files.items():
            place = repository / "snapshots" / commit / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content, encoding="utf-8")
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / branch).write_text(commit, encoding="utf-8")
        return repository / "snapshots" / commit

    return make


def texts(source: Source, *, streaming: bool = False) -> list[str]:
    rows = open_rows(source, Data(train=source), "data.train", streaming=streaming)
    return [row.values["text"] for row in rows]


def lines(*values: str) -> str:
    return "".join(json.dumps({"text": value}) + "\n" for value in values)


def test_a_revision_is_a_branch_or_a_commit_and_the_commit_is_what_is_recorded(snapshot: Callable[..., Path]) -> None:
    snapshot(FIRST, {"train.jsonl": lines("old")}, "v1")
    snapshot(SECOND, {"train.jsonl": lines("new")})

    assert texts(Source(dataset=NAME)) == ["new"]
    assert texts(Source(dataset=NAME, revision="v1")) == ["old"]
    assert texts(Source(dataset=NAME, revision=FIRST)) == ["old"]
    source = Source(dataset=NAME, revision="v1")
    identity = open_rows(source, Data(train=source), "data.train").identity
    assert identity == {"dataset": NAME, "split": "train", "revision": FIRST}


def test_configuration_split_and_how_files_are_read_are_what_the_card_says(snapshot: Callable[..., Path]) -> None:
    colours = {f"colours/train-{number}.csv": f"id;text\n1;red {number}\n2;blue {number}\n" for number in (0, 1)}
    others = {"colours/validation.csv": "id;text\n1;green\n", "plain/all.csv": "id,text\n1,one\n"}
    snapshot(FIRST, {"README.md": CARD, **colours, **others})

    assert texts(Source(dataset=NAME, name="colours")) == ["red 0", "blue 0", "red 1", "blue 1"]
    assert texts(Source(dataset=NAME, name="colours"), streaming=True) == ["red 0", "blue 0", "red 1", "blue 1"]
    assert texts(Source(dataset=NAME, name="colours", split="train[:1]+validation")) == ["red 0", "green"]
    assert texts(Source(dataset=NAME, name="plain")) == ["one"]


def test_parquet_files_without_a_card_are_told_apart_by_their_names(snapshot: Callable[..., Path]) -> None:
    folder = snapshot(FIRST, {})
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        table = pyarrow.table({"text": [f"{split} one", f"{split} two"]})
        pyarrow.parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")

    assert texts(Source(dataset=NAME)) == ["train one", "train two"]
    assert texts(Source(dataset=NAME, split="test[1:]")) == ["test two"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"name": "plain"}, r"data\.train\.dataset: someone/rows cannot be read: BuilderConfig 'plain' not found"),
        ({"split": "test"}, r"data\.train\.split: someone/rows has no split test\. There are: train\."),
        ({"revision": "v3"}, r"data\.train\.dataset: someone/rows at v3 is not on this machine, and HF_HUB_OFFLINE"),
    ],
)
def test_what_a_data_set_has_not_is_an_error_about_its_field(
    source: dict[str, str], words: str, snapshot: Callable[..., Path]
) -> None:
    snapshot(FIRST, {"train.jsonl": lines("one")})

    with pytest.raises(FieldError, match=words):
        texts(Source(dataset=NAME, **source))  # type: ignore[arg-type]


def test_files_that_need_a_script_are_refused(snapshot: Callable[..., Path]) -> None:
    snapshot(FIRST, {"rows.py": "raise SystemExit('it ran')", "train.jsonl": lines("one")})

    with pytest.raises(FieldError, match="which is never run; try revision: refs/convert/parquet"):
        texts(Source(dataset=NAME))


def test_a_file_that_was_not_fetched_is_named(snapshot: Callable[..., Path]) -> None:
    folder = snapshot(FIRST, {"train.jsonl": lines("one")})
    tree = folder.parents[1] / "trees" / f"{FIRST}.json"
    tree.parent.mkdir()
    listed = {name: {"size": 5, "blob_id": "0" * 40} for name in ("train.jsonl", "validation.jsonl")}
    tree.write_text(json.dumps({"format_version": 1, "files": listed}), encoding="utf-8")

    assert texts(Source(dataset=NAME)) == ["one"]
    with pytest.raises(UnfetchedError, match=r"not whole on this machine \(validation\.jsonl is missing\)"):
        texts(Source(dataset=NAME, split="validation"))
