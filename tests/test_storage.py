"""Files and folders are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peftkit.errors import RunError
from peftkit.storage import (
    MANIFEST_NAME,
    atomic_folder,
    folder_hashes,
    read_json,
    sha256_of_json,
    write_json,
    write_text,
)


def test_a_folder_appears_whole_with_the_hash_of_each_file(tmp_path: Path) -> None:
    place = tmp_path / "out"

    with atomic_folder(place) as folder:
        (folder / "a.txt").write_text("a", encoding="utf-8")
        assert not place.exists()

    manifest = read_json(place / MANIFEST_NAME)
    assert manifest["files"]["a.txt"] == {"bytes": 1, "sha256": folder_hashes(place)["a.txt"]}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "a.txt").touch()
            raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        write_half()

    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")

    with pytest.raises(RunError, match="exists already and is not empty"), atomic_folder(tmp_path):
        pytest.fail("the block must not run")

    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_files_in_a_folder_get_the_modes_of_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "weights").touch(mode=0o600)
    finally:
        os.umask(umask)

    assert (tmp_path / "out" / "weights").stat().st_mode & 0o777 == 0o640


def test_equal_json_has_equal_hashes_whatever_the_order() -> None:
    assert sha256_of_json({"a": 1, "b": [2]}) == sha256_of_json({"b": [2], "a": 1})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": 2})


def test_a_nan_is_never_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"loss": 1.0})

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})

    assert read_json(path) == {"loss": 1.0}


def test_a_replaced_file_leaves_no_part_behind(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "two")

    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"a.txt": "two"}
