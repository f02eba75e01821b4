"""Files and folders are whole or not there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from peftkit.errors import RunError
from peftkit.storage import (
    MANIFEST_NAME,
    append_json_line,
    atomic_folder,
    file_fault,
    folder_hashes,
    manifest_faults,
    new_part,
    read_json,
    remove_folder,
    remove_parts,
    sha256_of_file,
    sha256_of_json,
    write_fault,
    write_json,
    write_text,
)

APPEND = """
import json, resource, sys
from pathlib import Path
from peftkit.storage import append_json_line
path, value, said = Path(sys.argv[1]), {"text": "é" * 20, "loss": 0.5}, []
for limit in range(int(sys.argv[2])):
    path.write_bytes(b'{"step": 1}\\n')
    resource.setrlimit(resource.RLIMIT_FSIZE, (12 + limit, -1))
    try:
        append_json_line(path, value)
        error = None
    except OSError as caught:
        error = caught.errno
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    said.append([error, path.read_text("utf-8")])
print(json.dumps(said))
"""

REMOVE = """
import os, sys
from pathlib import Path
from peftkit.storage import remove_folder
sys.addaudithook(lambda event, _: event == "os.remove" and os._exit(9))
remove_folder(Path(sys.argv[1]))
"""


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder with a manifest, beside a file that is not below it."""
    (tmp_path / "beside").write_text("a secret", encoding="utf-8")
    with atomic_folder(tmp_path / "whole") as part:
        (part / "inner").mkdir()
        (part / "a.txt").write_text("abcd", encoding="utf-8")
        (part / "inner" / "b.txt").write_text("efgh", encoding="utf-8")
    return tmp_path / "whole"


def manifest_of(folder: Path, files: Any) -> None:
    (folder / MANIFEST_NAME).write_text(json.dumps({"files": files}), encoding="utf-8")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


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


def test_a_folder_as_it_was_written_has_no_faults(whole: Path) -> None:
    assert manifest_faults(whole) == []


def test_what_is_missing_or_has_changed_is_named_with_how(whole: Path) -> None:
    (whole / "a.txt").write_text("abc", encoding="utf-8")
    (whole / "inner" / "b.txt").unlink()

    assert manifest_faults(whole) == ["a.txt has changed: 3 bytes instead of 4", "inner/b.txt is missing"]


def test_a_change_that_leaves_the_size_is_a_fault(whole: Path) -> None:
    (whole / "a.txt").write_text("abcD", encoding="utf-8")

    assert manifest_faults(whole) == ["a.txt has changed"]


def test_a_folder_in_the_place_of_a_file_is_a_file_that_is_missing(whole: Path) -> None:
    (whole / "a.txt").unlink()
    (whole / "a.txt").mkdir()

    assert manifest_faults(whole) == ["a.txt is missing"]


def test_a_file_that_somebody_added_is_no_fault(whole: Path) -> None:
    (whole / "notes.txt").touch()
    (whole / "inner" / "more").mkdir()

    assert manifest_faults(whole) == []


def test_a_file_that_may_be_edited_is_no_fault_and_the_others_are(whole: Path) -> None:
    (whole / "a.txt").unlink()
    (whole / "inner" / "b.txt").write_text("more", encoding="utf-8")

    assert manifest_faults(whole, editable=["a.txt"]) == ["inner/b.txt has changed"]
    assert manifest_faults(whole, editable=["a.txt", "inner/b.txt"]) == []


@pytest.mark.parametrize("name", ["../beside", "inner/../../beside", "inner/../a.txt", "..", "../../beside"])
def test_a_name_that_leads_out_of_the_folder_is_never_opened(whole: Path, name: str) -> None:
    digest = sha256_of_file(whole.parent / "beside")
    manifest_of(whole, {name: {"sha256": digest, "bytes": 8}})

    assert manifest_faults(whole) == [f"{name} is no file below it"]
    assert file_fault(whole, name, digest, 8) == f"{name} is no file below it"


def test_an_absolute_name_is_never_opened(whole: Path) -> None:
    beside = whole.parent / "beside"
    os.mkfifo(whole.parent / "pipe")  # who opened it would wait for ever

    found = [file_fault(whole, str(path), sha256_of_file(beside)) for path in (beside, whole.parent / "pipe")]

    assert found == [f"{beside} is no file below it", f"{whole.parent / 'pipe'} is no file below it"]


def test_a_pipe_in_the_place_of_a_file_is_not_opened(whole: Path) -> None:
    (whole / "a.txt").unlink()
    os.mkfifo(whole / "a.txt")

    assert manifest_faults(whole) == ["a.txt is missing"]


def test_without_a_known_size_the_content_alone_counts(whole: Path) -> None:
    digest = sha256_of_file(whole / "a.txt")
    same = file_fault(whole, "a.txt", digest)
    (whole / "a.txt").write_text("longer than before", encoding="utf-8")

    assert same is None
    assert file_fault(whole, "a.txt", digest) == "a.txt has changed"


@pytest.mark.parametrize(
    "files", [None, [], "a.txt", 3, {"a.txt": None}, {"a.txt": {"bytes": 4}}, {"a.txt": {"sha256": "0", "bytes": "x"}}]
)
def test_a_manifest_of_another_kind_is_none(whole: Path, files: Any) -> None:
    manifest_of(whole, files)

    assert manifest_faults(whole) is None


def test_a_folder_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert manifest_faults(tmp_path) is None
    assert manifest_faults(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", [".step-3.0123abcd.part", ".a.b c.ffffffff.part", "..0123abcd.0123abcd.part"])
def test_what_was_left_unfinished_is_removed_and_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "inner").mkdir(parents=True)
    (tmp_path / name / "inner" / "weights").touch()
    (tmp_path / ".metrics.jsonl.00000000.part").touch()

    removed = remove_parts(tmp_path)

    assert removed == sorted([name, ".metrics.jsonl.00000000.part"])
    assert names(tmp_path) == set()


def test_parts_are_removed_by_the_names_that_they_are_given(tmp_path: Path) -> None:
    part = new_part(tmp_path / "step-3")
    (part / "weights").touch()

    assert names(tmp_path) == {part.name, f"{part.name}/weights"}
    assert remove_parts(tmp_path) == [part.name]
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    "name",
    [
        "step-3.0123abcd.part",
        ".step-3.part",
        ".step-3.0123abc.part",
        ".step-3.0123ABCD.part",
        ".step-3.0123abcd.part2",
        ".0123abcd.part",
        ".step-3.0123abcd0.part",
        ".step-3.x123abcd.part",
        ".step-3.0123abcd.PART",
    ],
)
def test_what_has_no_such_name_is_left(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "inner" / ".step-3.0123abcd.part").mkdir(parents=True)

    assert remove_parts(tmp_path) == []
    assert names(tmp_path) == {name, "inner", "inner/.step-3.0123abcd.part"}


@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_a_name_that_is_not_hidden_is_never_taken_for_one(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("parts")
    (folder / f"x{name}.0123abcd.part").touch()

    removed = remove_parts(folder)

    assert removed == []
    assert names(folder) == {f"x{name}.0123abcd.part"}


def test_a_link_is_removed_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    folder, mine = tmp_path / "folder", tmp_path / "mine"
    folder.mkdir()
    mine.mkdir()
    (mine / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / ".a.0123abcd.part").symlink_to(mine)
    (folder / ".b.0123abcd.part").symlink_to(mine / "notes.txt")
    (folder / ".c.0123abcd.part").symlink_to(tmp_path / "nothing")

    removed = remove_parts(folder)

    assert removed == [".a.0123abcd.part", ".b.0123abcd.part", ".c.0123abcd.part"]
    assert names(tmp_path) == {"folder", "mine", "mine/notes.txt"}


def test_a_link_within_a_part_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    part = new_part(tmp_path / "step-3")
    (part / "link").symlink_to(tmp_path / "mine")

    remove_parts(tmp_path)

    assert names(tmp_path) == {"mine", "mine/notes.txt"}


def test_where_there_is_no_folder_there_are_no_parts(tmp_path: Path) -> None:
    assert remove_parts(tmp_path / "nothing") == []


def test_a_folder_that_is_removed_leaves_nothing(whole: Path) -> None:
    (whole / "link").symlink_to(whole.parent / "beside")

    remove_folder(whole)

    assert names(whole.parent) == {"beside"}


def test_a_folder_whose_removal_is_cut_short_is_not_at_its_place_any_more(whole: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", REMOVE, str(whole)], check=False)

    assert ended.returncode == 9
    assert not whole.exists()
    assert len(remove_parts(whole.parent)) == 1
    assert names(whole.parent) == {"beside"}


def test_a_folder_that_is_not_there_cannot_be_removed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        remove_folder(tmp_path / "nothing")


def test_lines_are_added_one_after_the_other(tmp_path: Path) -> None:
    values = [{"step": 1, "loss": 0.1}, {"text": "zwei\nZeilen, ü\u2028"}, [], None]

    for value in values:
        append_json_line(tmp_path / "lines.jsonl", value)

    lines = (tmp_path / "lines.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == values
    assert lines[-1] == ""


def test_a_line_with_what_json_has_not_adds_nothing(tmp_path: Path) -> None:
    append_json_line(tmp_path / "lines.jsonl", 1)

    with pytest.raises(ValueError, match="not JSON compliant"):
        append_json_line(tmp_path / "lines.jsonl", {"loss": float("inf")})

    assert (tmp_path / "lines.jsonl").read_text(encoding="utf-8") == "1\n"


def test_on_a_disk_that_is_full_a_line_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    before = '{"step": 1}\n'
    line = json.dumps({"text": "é" * 20, "loss": 0.5}, ensure_ascii=False) + "\n"
    length = len(line.encode())
    command = [sys.executable, "-c", APPEND, str(tmp_path / "lines.jsonl"), str(length + 3)]

    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert [text for _, text in said] == [before] * length + [before + line] * 3
    assert [error for error, _ in said] == [errno.EFBIG] + [errno.ENOSPC] * (length - 1) + [None] * 3


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, "the disk is full, or a limit on the size of files is reached."),
        (errno.EDQUOT, "the disk is full, or a limit on the size of files is reached."),
        (errno.EFBIG, "the disk is full, or a limit on the size of files is reached."),
        (errno.EACCES, "cannot be written: the folder or its disk is read-only for this user."),
        (errno.EPERM, "cannot be written: the folder or its disk is read-only for this user."),
        (errno.EROFS, "cannot be written: the folder or its disk is read-only for this user."),
        (errno.ENOENT, "is no longer there: a folder was removed or moved while it was in use."),
        (errno.ENOTDIR, "is no longer there: a folder was removed or moved while it was in use."),
        (errno.ESTALE, "is no longer there: a folder was removed or moved while it was in use."),
        (errno.EIO, "the disk failed to read or write."),
    ],
)
def test_an_error_of_the_disk_is_told_with_its_place_however_it_comes(number: int, what: str, tmp_path: Path) -> None:
    errors = (
        OSError(number, os.strerror(number)),
        OSError(number, os.strerror(number), str(tmp_path / "weights")),
        SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"),
    )

    found = [write_fault(error, tmp_path) for error in errors]

    assert [type(fault) for fault in found] == [RunError] * 3
    assert [str(fault) for fault in found] == [
        f"{tmp_path}: {what}",
        f"{tmp_path / 'weights'}: {what}",
        f"{tmp_path}: {what}",
    ]


@pytest.mark.parametrize(
    "error",
    [
        OSError("no number"),
        OSError(errno.ECONNRESET, "Connection reset by peer"),
        OSError(errno.EINVAL, "Invalid argument"),
        TimeoutError(),
        ValueError("disk is full"),
        SafetensorError("Error while deserializing header: header too small"),
        SafetensorError("(os error 104)"),
        KeyboardInterrupt(),
        MemoryError(),
    ],
    ids=repr,
)
def test_any_other_error_is_not_told_as_one_of_the_disk(error: BaseException, tmp_path: Path) -> None:
    assert write_fault(error, tmp_path) is None


def test_an_error_that_a_full_disk_really_raises_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")

    assert str(write_fault(caught.value, tmp_path)).startswith(f"{tmp_path}: the disk is full")


def test_an_error_that_a_removed_folder_really_raises_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        write_text(tmp_path / "nothing" / "a.txt", "a")

    assert "nothing" in str(write_fault(caught.value, tmp_path))
    assert "is no longer there" in str(write_fault(caught.value, tmp_path))


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_that_is_nested_too_deeply_is_an_error_of_its_value(tmp_path: Path, opening: str) -> None:
    (tmp_path / "deep.json").write_text(opening * 100_000, encoding="utf-8")

    with pytest.raises(ValueError, match="is nested too deeply"):
        read_json(tmp_path / "deep.json")


def test_a_manifest_that_is_nested_too_deeply_is_none(whole: Path) -> None:
    (whole / MANIFEST_NAME).write_text("[" * 100_000, encoding="utf-8")

    assert manifest_faults(whole) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"a": 1} more'])
def test_what_is_no_json_is_an_error_of_its_value(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "value.json").write_bytes(content)

    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "value.json")
