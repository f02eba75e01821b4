"""A checkpoint that the disk has damaged is found, named and passed over, and the run ends in the same weights."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

FILES = (
    "adapter_config.json", "adapter_model.safetensors", "manifest.json", "metrics.jsonl", "optimizer.safetensors",
    "progress.json", "random.safetensors", "scheduler.safetensors", "trainer_state.json",
)  # fmt: skip
WAYS = ("cut short", "one bit flipped", "missing")
IN_THE_MAIN_SUITE = {
    ("adapter_model.safetensors", "cut short"),
    ("optimizer.safetensors", "one bit flipped"),
    ("random.safetensors", "missing"),
}


def damage(path: Path, way: str, chance: random.Random) -> None:
    """Do to a file what a disk can do to it."""
    if way == "missing":
        path.unlink()
    elif way == "cut short":
        os.truncate(path, chance.randrange(path.stat().st_size))
    else:
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=() if (name, way) in IN_THE_MAIN_SUITE else pytest.mark.faults)
        for name in FILES
        for way in WAYS
    ],
)
def test_a_damaged_file_is_named_and_its_checkpoint_passed_over(
    name: str, way: str, stopped: Any, undisturbed: Any
) -> None:
    run = f"{name}-{way}".replace(" ", "-")
    shutil.copytree(stopped.path / "stopped", stopped.path / run)
    newest, before = stopped.checkpoints(run)
    assert {path.name for path in newest.iterdir()} == set(FILES)
    damage(newest / name, way, random.Random(run))

    status, log = stopped.train(run, "--resume")

    assert status == 0, log
    assert f"{newest.name} is passed over: " in log
    assert name in log or name == "manifest.json"  # of a manifest, whatever it says wrong is named
    assert f"resuming from {Path(run, 'checkpoints', before.name)}" in log
    assert stopped.result(run) == undisturbed("lora")
    assert newest.with_name(f"{newest.name}.damaged-1").is_dir()
    assert stopped.leftovers(run) == []


@pytest.mark.faults
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_other_methods_fall_back_too(method: str, work: Any, undisturbed: Any) -> None:
    work.stop("run", "--method", method)
    newest = work.checkpoints("run")[0]
    weights = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    damage(newest / weights, "one bit flipped", random.Random(method))

    status, log = work.train("run", "--method", method, "--resume")

    assert status == 0, log
    assert f"{weights} has changed" in log
    assert work.result("run", method) == undisturbed(method)


@pytest.mark.faults
def test_without_one_sound_checkpoint_the_run_begins_again(stopped: Any, undisturbed: Any) -> None:
    shutil.copytree(stopped.path / "stopped", stopped.path / "none")
    for checkpoint in stopped.checkpoints("none"):
        damage(checkpoint / "scheduler.safetensors", "missing", random.Random())

    status, log = stopped.train("none", "--resume")

    assert status == 0, log
    assert log.count("is passed over") == 2
    assert "has no checkpoint that verifies, so the run begins again" in log
    assert stopped.result("none") == undisturbed("lora")


def test_verify_names_what_is_damaged(stopped: Any) -> None:
    shutil.copytree(stopped.path / "stopped", stopped.path / "named")
    sound = stopped.run("verify", "named")
    newest = stopped.checkpoints("named")[0]
    damage(newest / "optimizer.safetensors", "one bit flipped", random.Random())

    status, log = stopped.run("verify", "named")

    assert sound[0] == 0, sound[1]
    assert status == 2
    assert f"checkpoints/{newest.name}: optimizer.safetensors has changed" in log
