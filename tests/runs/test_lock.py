"""Two processes never work in one run folder, and one that was killed keeps nobody out."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftkit.errors import TargetError
from peftkit.runs.folder import LOCK_NAME, is_held, locked

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
