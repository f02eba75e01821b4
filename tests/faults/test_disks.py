"""Disks that are full or closed, and files that go away or change while a run needs them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.faults


@pytest.fixture
def disk(work: Any) -> Iterator[Path]:
    """A small disk within the work folder."""
    place: Path = work.path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "none", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a disk can be mounted by root alone")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path) -> Path:
    """Leave nothing on a disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return filler
    raise RuntimeError("the disk has no end")


def close(folder: Path, closed: bool) -> None:
    """Let nobody write into a folder, not even root, or let them again."""
    if os.geteuid():
        folder.chmod(0o555 if closed else 0o755)
    elif subprocess.run(["chattr", "+i" if closed else "-i", folder], capture_output=True, check=False).returncode:
        pytest.skip("this disk knows no folders that are closed to root")


def test_a_disk_that_will_be_too_small_is_told_before_the_start(work: Any, disk: Path) -> None:
    status, log = work.train("disk/run", "--method", "full", "--set", "training.save_total_limit=4")

    assert status == 2, log
    assert "error: disk/run: the run needs about " in log
    assert "but the disk has 25 MB free" in log
    assert list(disk.iterdir()) == []


def test_a_full_disk_keeps_the_last_good_checkpoint(work: Any, disk: Path, undisturbed: Any) -> None:
    running = work.begin("disk/run")
    filler = fill(disk)

    assert running.ended() == 1, running.log
    assert "the disk is full" in running.log
    assert "resume with: peftkit train disk/run --resume" in running.log
    assert work.checkpoints("disk/run")
    assert work.leftovers("disk/run") == []

    filler.unlink()
    assert work.train("disk/run", "--resume")[0] == 0
    assert work.result("disk/run") == undisturbed("lora")


def test_a_limit_on_files_is_a_full_disk(work: Any, undisturbed: Any) -> None:
    status, log = work.train("run", file_bytes=60_000)  # the optimizer's state has 67 kB, and no other file as much

    assert status == 1, log
    assert "the disk is full, or a limit on the size of files is reached" in log
    assert work.checkpoints("run") == []
    assert work.leftovers("run") == []
    assert work.train("run", "--resume")[0] == 0
    assert work.result("run") == undisturbed("lora")


def test_a_folder_that_becomes_read_only_is_told(work: Any, undisturbed: Any) -> None:
    running = work.begin("run")
    folder = work.path / "run" / "checkpoints"
    close(folder, True)

    status = running.ended()
    close(folder, False)
    assert status == 1, running.log
    assert "cannot be written: the folder or its disk is read-only" in running.log
    assert work.checkpoints("run")
    assert work.leftovers("run") == []
    assert work.train("run", "--resume")[0] == 0
    assert work.result("run") == undisturbed("lora")


def test_a_cache_that_cannot_grow_is_told(work: Any) -> None:
    status, log = work.train("run", file_bytes=20_000)  # which is less than a tokenizer's file

    assert status == 1, log
    assert "error: the disk is full, or a limit on the size of files is reached." in log
    assert "PEFTKIT_CACHE" in log
    assert not (work.path / "run").exists()


def test_a_read_only_place_is_told_before_the_start(work: Any, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    status, log = work.train("disk/run")

    assert status == 2, log
    assert "error: disk/run: cannot be written: the folder or its disk is read-only for this user." in log
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("change", ["removed", "changed"])
def test_data_that_goes_away_or_changes_stops_the_run(change: str, work: Any, undisturbed: Any) -> None:
    data = work.path / "train.jsonl"
    kept = data.read_bytes()
    running = work.begin("run")
    if change == "removed":
        data.unlink()
    else:
        data.write_bytes(kept[: len(kept) // 2])

    assert running.ended() == 1, running.log
    assert f"{data}: was {change} while training. Put it back as it was, and resume with --resume." in running.log
    assert work.leftovers("run") == []

    data.write_bytes(kept)
    assert work.train("run", "--resume")[0] == 0
    assert work.result("run") == undisturbed("lora")


def test_a_run_folder_that_is_removed_is_told(work: Any) -> None:
    running = work.begin("run")
    shutil.rmtree(work.path / "run")

    assert running.ended() == 1, running.log
    assert "is no longer there: a folder was removed or moved while it was in use" in running.log
    assert "Begin again" in running.log


@pytest.mark.parametrize("name", ["optimizer.safetensors", "manifest.json"])
def test_a_file_that_is_removed_from_a_checkpoint_is_found_when_it_is_needed(
    name: str, work: Any, undisturbed: Any
) -> None:
    running = work.begin("run")
    (work.checkpoints("run")[0] / name).unlink()

    assert running.ended() == 0, running.log
    assert work.result("run") == undisturbed("lora")
