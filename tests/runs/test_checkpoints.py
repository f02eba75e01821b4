"""A run goes on from nothing but its own checkpoint, whole; and removes nothing but its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.runs.folder import (
    PROGRESS_NAME,
    Checkpoint,
    checkpoint_place,
    find_checkpoints,
    newest_sound,
    rotate,
    set_aside,
)
from peftkit.storage import MANIFEST_NAME, atomic_folder, write_json

Write = Callable[..., Checkpoint]
RUN, OTHER_RUN = "0123456789abcdef", "fedcba9876543210"
WEIGHTS, OPTIMIZER, METRICS = "adapter_model.safetensors", "optimizer.safetensors", "metrics.jsonl"
LISTED = (WEIGHTS, OPTIMIZER, METRICS, PROGRESS_NAME)
ALL = (*LISTED, MANIFEST_NAME)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each run, as a run writes it but with small files."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for run_id in (RUN, OTHER_RUN):
        with atomic_folder(folder / run_id) as part:
            (part / WEIGHTS).write_bytes(bytes(range(48)))
            (part / OPTIMIZER).write_bytes(bytes(16))
            (part / METRICS).write_bytes(b'{"loss": 1.5}\n')
            write_json(part / PROGRESS_NAME, {"run_id": run_id, "train_tokens": 12})
    return {run_id: folder / run_id for run_id in (RUN, OTHER_RUN)}


@pytest.fixture
def write(originals: dict[str, Path], tmp_path: Path) -> Write:
    """Puts a checkpoint of a run into the test's folder; a copy, because each new one waits for the disk."""

    def copy(step: int, run_id: str = RUN) -> Checkpoint:
        return Checkpoint(step, Path(shutil.copytree(originals[run_id], checkpoint_place(tmp_path, step))))

    return copy


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def cut(path: Path) -> None:
    """Take the last byte off a file."""
    path.write_bytes(path.read_bytes()[:-1])


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """A file with one bit the other way."""
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(whole)


def test_a_checkpoint_as_it_was_written_has_no_faults(write: Write) -> None:
    checkpoint = write(3)

    assert checkpoint.faults(RUN) == []
    assert names(checkpoint.path) == set(ALL)


@pytest.mark.parametrize("name", LISTED)
def test_a_file_that_is_cut_short_is_named_with_both_sizes(name: str, write: Write) -> None:
    checkpoint = write(3)
    size = (checkpoint.path / name).stat().st_size
    cut(checkpoint.path / name)

    assert checkpoint.faults(RUN) == [f"{name} has changed: {size - 1} bytes instead of {size}"]


@pytest.mark.parametrize("name", LISTED)
def test_a_file_that_is_missing_is_named(name: str, write: Write) -> None:
    checkpoint = write(3)
    (checkpoint.path / name).unlink()

    assert checkpoint.faults(RUN) == [f"{name} is missing"]


@pytest.mark.parametrize("name", LISTED)
def test_a_file_of_which_one_bit_has_flipped_is_named(name: str, write: Write) -> None:
    checkpoint = write(3)

    with flipped(checkpoint.path / name, 77):
        assert checkpoint.faults(RUN) == [f"{name} has changed"]


def test_every_fault_is_named(write: Write) -> None:
    checkpoint = write(3)
    (checkpoint.path / WEIGHTS).unlink()
    cut(checkpoint.path / METRICS)

    assert sorted(checkpoint.faults(RUN)) == [f"{WEIGHTS} is missing", f"{METRICS} has changed: 13 bytes instead of 14"]


def test_a_checkpoint_without_a_manifest_is_not_sound(write: Write) -> None:
    checkpoint = write(3)
    (checkpoint.path / MANIFEST_NAME).unlink()

    assert checkpoint.faults(RUN) == ["manifest.json is missing or damaged"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"files": []}', b'{"files": {"a": {}}}', b"\xff"])
def test_a_manifest_that_is_none_is_a_fault(content: bytes, write: Write) -> None:
    checkpoint = write(3)
    (checkpoint.path / MANIFEST_NAME).write_bytes(content)

    assert checkpoint.faults(RUN) == ["manifest.json is missing or damaged"]


def test_a_manifest_cut_short_anywhere_is_a_fault(write: Write) -> None:
    checkpoint = write(3)
    manifest = checkpoint.path / MANIFEST_NAME
    whole = manifest.read_bytes().rstrip()

    found = []
    for length in range(len(whole)):
        manifest.write_bytes(whole[:length])
        found.append(checkpoint.faults(RUN))

    assert found == [["manifest.json is missing or damaged"]] * len(whole)


def test_a_whole_checkpoint_of_another_run_is_not_sound(write: Write) -> None:
    checkpoint = write(3, OTHER_RUN)

    assert checkpoint.faults(RUN) == ["it belongs to another run"]
    assert checkpoint.faults(OTHER_RUN) == []


@pytest.mark.parametrize("progress", [{}, [], {"run_id": None}, None])
def test_a_checkpoint_that_does_not_say_whose_it_is_belongs_to_no_run(progress: object, tmp_path: Path) -> None:
    with atomic_folder(checkpoint_place(tmp_path, 3)) as part:
        write_json(part / PROGRESS_NAME, progress)

    assert Checkpoint(3, checkpoint_place(tmp_path, 3)).faults(RUN) == ["it belongs to another run"]


@given(name=st.sampled_from(ALL), where=st.floats(0, 1, exclude_max=True))
def test_whatever_bit_of_whatever_file_is_flipped_there_are_faults(
    originals: dict[str, Path], name: str, where: float
) -> None:
    checkpoint = Checkpoint(3, originals[RUN])
    path = checkpoint.path / name

    with flipped(path, int(where * 8 * path.stat().st_size)):
        faults = checkpoint.faults(RUN)

    assert faults != []
    assert checkpoint.faults(RUN) == []


def test_checkpoints_are_found_newest_first_by_number_and_nothing_else_is(write: Write, tmp_path: Path) -> None:
    checkpoints = [write(step) for step in (10, 9, 2)]
    for name in ("step-", "step-x", "step-3.damaged-1", "my-step-3", ".step-3.0123abcd.part"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-11").touch()

    assert find_checkpoints(tmp_path) == checkpoints


def test_the_newest_checkpoint_is_taken_where_it_is_sound(write: Write, tmp_path: Path) -> None:
    write(1)
    newest = write(2)

    assert newest_sound(tmp_path, RUN) == (newest, [])


def test_checkpoints_that_do_not_verify_are_passed_over_and_named(write: Write, tmp_path: Path) -> None:
    _, sound, foreign, damaged = write(1), write(2), write(3, OTHER_RUN), write(4)
    cut(damaged.path / WEIGHTS)

    assert newest_sound(tmp_path, RUN) == (
        sound,
        [(damaged, [f"{WEIGHTS} has changed: 47 bytes instead of 48"]), (foreign, ["it belongs to another run"])],
    )


def test_where_none_is_sound_all_are_passed_over(write: Write, tmp_path: Path) -> None:
    checkpoints = [write(step) for step in (2, 1)]
    for checkpoint in checkpoints:
        (checkpoint.path / OPTIMIZER).unlink()

    assert newest_sound(tmp_path, RUN) == (
        None,
        [(checkpoint, [f"{OPTIMIZER} is missing"]) for checkpoint in checkpoints],
    )


def test_where_there_is_no_folder_there_are_no_checkpoints(tmp_path: Path) -> None:
    assert newest_sound(tmp_path / "checkpoints", RUN) == (None, [])
    assert rotate(tmp_path / "checkpoints", RUN, 1, None) == []


def test_what_is_set_aside_is_kept_under_the_next_free_number_and_is_no_checkpoint_any_more(
    write: Write, tmp_path: Path
) -> None:
    first = set_aside(write(3))
    second = set_aside(write(3, OTHER_RUN))
    other = set_aside(write(30))

    assert [place.name for place in (first, second, other)] == [
        "step-3.damaged-1",
        "step-3.damaged-2",
        "step-30.damaged-1",
    ]
    assert Checkpoint(3, first).faults(RUN) == []
    assert Checkpoint(3, second).faults(OTHER_RUN) == []
    assert find_checkpoints(tmp_path) == []


def test_the_newest_are_kept_and_the_older_ones_removed_and_named(write: Write, tmp_path: Path) -> None:
    eighth, ninth, *newest = [write(step) for step in (8, 9, 10, 11)]

    removed = rotate(tmp_path, RUN, keep=2, best=None)

    assert removed == [ninth, eighth]
    assert names(tmp_path) == {"step-10", "step-11"}
    assert [checkpoint.faults(RUN) for checkpoint in newest] == [[], []]


@pytest.mark.parametrize(
    ("best", "left"),
    [(1, {"step-1", "step-3", "step-4"}), (3, {"step-3", "step-4"}), (7, {"step-3", "step-4"})],
)
def test_the_best_is_kept_beside_the_newest(best: int, left: set[str], write: Write, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(step)

    rotate(tmp_path, RUN, keep=2, best=best)

    assert names(tmp_path) == left


def test_nothing_is_removed_while_there_are_few(write: Write, tmp_path: Path) -> None:
    write(1)
    write(2)

    assert rotate(tmp_path, RUN, keep=2, best=None) == []
    assert names(tmp_path) == {"step-1", "step-2"}


def test_nothing_is_removed_where_all_are_kept(write: Write, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(step)

    assert rotate(tmp_path, RUN, keep=None, best=None) == []
    assert names(tmp_path) == {"step-1", "step-2", "step-3", "step-4"}


def test_what_is_not_this_runs_is_neither_removed_nor_counted(write: Write, tmp_path: Path) -> None:
    _, own = write(1), write(5)
    foreign = [write(step, OTHER_RUN) for step in (2, 6)]
    (tmp_path / "step-3").mkdir()
    (tmp_path / "step-3" / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "step-7").mkdir()
    set_aside(write(4))
    (tmp_path / "notes.txt").touch()

    removed = rotate(tmp_path, RUN, keep=1, best=None)

    assert [checkpoint.step for checkpoint in removed] == [1]
    assert names(tmp_path) == {"step-2", "step-3", "step-4.damaged-1", "step-5", "step-6", "step-7", "notes.txt"}
    assert [own.faults(RUN), *(checkpoint.faults(OTHER_RUN) for checkpoint in foreign)] == [[], [], []]
    assert (tmp_path / "step-3" / "notes.txt").read_text(encoding="utf-8") == "mine"
