"""A run notices when the files that it is made of change or go."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from peftkit.errors import RunError
from peftkit.runs.differences import Inputs
from peftkit.storage import sha256_of_file


@dataclass(frozen=True)
class Files:
    """What a run reads: a file of the base, one of data, and one that is streamed."""

    weights: Path
    rows: Path
    stream: Path

    def inputs(self) -> Inputs:
        """The same files, as they are now."""
        base = {"model": "x", "files": {self.weights.name: sha256_of_file(self.weights)}}
        hashed = {"files": {str(self.rows): sha256_of_file(self.rows)}}
        streamed = {"files": {str(self.stream): None}, "bytes": 1}
        data = {"train": {"sources": [hashed, {"dataset": "builtin:grammar"}, streamed]}, "validation": hashed}
        return Inputs.of(base, self.weights.parent, data)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    (tmp_path / "base").mkdir()
    found = Files(tmp_path / "base" / "model.safetensors", tmp_path / "rows.jsonl", tmp_path / "stream.jsonl")
    for path in (found.weights, found.rows, found.stream):
        path.write_text(f"{path.name}\n", encoding="utf-8")
    return found


def touch(path: Path) -> None:
    """Give a file another time, and leave its content."""
    os.utime(path, ns=(1, 1))


def test_files_that_stay_as_they_are_pass(files: Files) -> None:
    inputs = files.inputs()

    inputs.check()

    assert set(inputs.hashes) == set(inputs.marks) == {files.weights, files.rows, files.stream}
    assert inputs.hashes[files.stream] is None


@pytest.mark.parametrize("name", ["weights", "rows"])
def test_a_file_with_another_time_and_the_same_content_passes(name: str, files: Files) -> None:
    inputs = files.inputs()
    touch(getattr(files, name))

    assert files.inputs().marks != inputs.marks
    inputs.check()


def test_a_file_in_whose_place_an_equal_one_was_put_passes(files: Files) -> None:
    inputs = files.inputs()
    copy = files.rows.with_name("copy")
    copy.write_bytes(files.rows.read_bytes())
    copy.replace(files.rows)

    assert files.inputs().marks != inputs.marks
    inputs.check()


@pytest.mark.parametrize("name", ["weights", "rows", "stream"])
def test_a_file_that_changed_is_an_error_that_names_it(name: str, files: Files) -> None:
    inputs = files.inputs()
    path: Path = getattr(files, name)
    with path.open("a", encoding="utf-8") as file:
        file.write("more\n")

    with pytest.raises(RunError, match=r"was changed while training\. Put it back as it was") as caught:
        inputs.check()

    assert caught.value.where == str(path)


@pytest.mark.parametrize("name", ["weights", "rows", "stream"])
def test_a_file_that_was_removed_is_an_error_that_names_it(name: str, files: Files) -> None:
    inputs = files.inputs()
    path: Path = getattr(files, name)
    path.unlink()

    with pytest.raises(RunError, match="was removed while training") as caught:
        inputs.check()

    assert caught.value.where == str(path)


def test_a_file_that_changed_within_its_size_is_an_error(files: Files) -> None:
    inputs = files.inputs()
    files.rows.write_text("ROWS.JSONL\n", encoding="utf-8")
    touch(files.rows)

    with pytest.raises(RunError, match=r"rows\.jsonl: was changed"):
        inputs.check()


def test_a_stream_whose_content_is_not_known_may_not_even_be_touched(files: Files) -> None:
    inputs = files.inputs()
    touch(files.stream)

    with pytest.raises(RunError, match=r"stream\.jsonl: was changed"):
        inputs.check()


def test_a_file_that_was_put_back_as_it_was_passes_again(files: Files) -> None:
    inputs = files.inputs()
    content = files.rows.read_bytes()
    files.rows.write_bytes(b"another\n")
    with pytest.raises(RunError, match="was changed"):
        inputs.check()

    files.rows.write_bytes(content)

    inputs.check()
    assert sha256_of_file(files.rows) == inputs.hashes[files.rows]


def test_a_run_without_files_has_none_to_watch() -> None:
    inputs = Inputs.of({}, None, {"train": {"dataset": "builtin:grammar"}, "validation": None})

    inputs.check()

    assert inputs.marks == {}
