"""A run folder: its layout and record, its checkpoints, and the lock of the process at work in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.errors import TargetError
from peftkit.runs.folder import (
    LOCK_NAME,
    PROGRESS_NAME,
    Checkpoint,
    RunFolder,
    checkpoint_place,
    find_checkpoints,
    is_held,
    locked,
    newest_sound,
    rotate,
    set_aside,
)
from peftkit.runs.manifest import RunManifest, RunMetrics
from peftkit.runs.versions import PACKAGES, installed_versions
from peftkit.storage import MANIFEST_NAME, atomic_folder, write_json


def manifest() -> RunManifest:
    return RunManifest(
        "small", "lora", "abc", {"model": "gpt2"}, {"train": {}}, installed_versions(), {"device": "cpu"}
    )


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "small")
    written = manifest()
    written.metrics = RunMetrics(perplexity=1.5, train_tokens=10)

    with folder.created("name: small\n", written):
        assert folder.read() == written

    assert folder.read() == written
    assert folder.recipe.read_text(encoding="utf-8") == "name: small\n"


def test_what_is_not_known_is_null() -> None:
    assert manifest().to_json()["metrics"]["perplexity"] is None


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "something").touch()

    with (
        pytest.raises(TargetError, match="peftkit never writes over a run"),
        RunFolder(tmp_path).created("name: small\n", manifest()),
    ):
        pytest.fail("the block must not run")

    assert [path.name for path in tmp_path.iterdir()] == ["something"]


@pytest.mark.parametrize("text", ["", "{", "{}", '{"name": "x"}'])
def test_a_damaged_manifest_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")

    with pytest.raises(TargetError, match=r"manifest\.json: is missing or damaged"):
        RunFolder(tmp_path).read()


def test_versions_name_every_library() -> None:
    versions = installed_versions()

    assert set(PACKAGES) <= set(versions)
    assert versions["torch"]


HOLD = """
import sys
from pathlib import Path
from peftkit.runs.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
HOLD_WITH_A_WORKER = """
import os, sys
from pathlib import Path
from peftkit.runs.folder import locked
with locked(Path(sys.argv[1])):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    sys.stdin.read()
"""
TRY = """
import sys
from pathlib import Path
from peftkit.errors import TargetError
from peftkit.runs.folder import locked
try:
    with locked(Path(sys.argv[1])):
        print("held")
except TargetError as error:
    print(error)
"""


@contextlib.contextmanager
def holder(folder: Path, code: str = HOLD) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that holds a folder until the block ends, and what it says when it does."""
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()


def attempt(folder: Path) -> str:
    """What another process says that tries to hold a folder."""
    command = [sys.executable, "-c", TRY, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_second_process_is_refused_and_told_which_one_holds_the_folder(tmp_path: Path) -> None:
    with locked(tmp_path):
        said = attempt(tmp_path)

    assert said.startswith(f"{tmp_path}: is in use by process {os.getpid()} on ")
    assert said.endswith("Wait until it ends, or name another --output.")


def test_this_process_is_refused_while_another_holds_the_folder(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, said):
        assert said == "held"
        with pytest.raises(TargetError, match=rf"is in use by process {process.pid} on "), locked(tmp_path):
            pytest.fail("the block must not run")


def test_who_was_refused_takes_nothing_from_who_holds_the_folder(tmp_path: Path) -> None:
    with locked(tmp_path):
        said = [attempt(tmp_path) for _ in range(2)]

    assert said[0] == said[1]
    assert f"process {os.getpid()} on " in said[0]


def test_a_folder_is_free_again_when_its_holder_is_done(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass

    assert attempt(tmp_path) == "held"


def test_a_folder_is_free_again_when_its_holder_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="halfway"), locked(tmp_path):
        raise ValueError("halfway")

    assert attempt(tmp_path) == "held"


def test_whoever_asks_is_told_whether_a_folder_is_held(tmp_path: Path) -> None:
    before = is_held(tmp_path)
    with holder(tmp_path):
        during = is_held(tmp_path)
        still = is_held(tmp_path)
    after = is_held(tmp_path)

    assert (before, during, still, after) == (False, True, True, False)


def test_a_folder_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, said):
        process.kill()
        status = process.wait()

    assert (said, status) == ("held", -signal.SIGKILL)
    assert attempt(tmp_path) == "held"


def test_a_worker_that_outlives_the_holder_keeps_nobody_out(tmp_path: Path) -> None:
    with holder(tmp_path, HOLD_WITH_A_WORKER) as (process, worker):
        held = attempt(tmp_path)
        process.kill()
        process.wait()
        os.kill(int(worker), 0)  # raises where it has ended
        free = attempt(tmp_path)

    assert f"process {process.pid} on " in held
    assert free == "held"


def test_the_newest_holder_is_named_and_no_earlier_one(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("process 123456789 on a machine with a very long name", encoding="utf-8")

    with holder(tmp_path) as (process, _):
        text = (tmp_path / LOCK_NAME).read_text(encoding="utf-8")

    assert text.startswith(f"process {process.pid} on ")
    assert "123456789 on a machine" not in text


def test_two_folders_are_held_apart(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()

    with locked(tmp_path / "one"):
        assert attempt(tmp_path / "two") == "held"


def test_a_folder_in_which_nothing_can_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).mkdir()

    with pytest.raises(TargetError, match=r"cannot be written: .*\. Make the folder writable"), locked(tmp_path):
        pytest.fail("the block must not run")
    with pytest.raises(TargetError, match=r"nothing: cannot be written"), locked(tmp_path / "nothing"):
        pytest.fail("the block must not run")


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
