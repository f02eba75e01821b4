"""`--nproc` and torchrun start processes of one run, and end with its result or its one error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from peftkit.errors import PeerError
from peftkit.runs.folder import RunFolder
from peftkit.training.launch import train_in_processes

Command = Callable[..., subprocess.CompletedProcess[str]]
SAVING = ("training.max_steps=60", "training.save_strategy=steps", "training.save_steps=5")
PEFTKIT = (sys.executable, "-m", "peftkit")
GPUS = torch.cuda.device_count()


def test_what_the_processes_have_told_is_the_launchers_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(PeerError) as caught:
        train_in_processes(["train", "missing.yaml"], 2)

    assert (caught.value.exit_status, caught.value.lines()) == (2, [])
    assert capfd.readouterr().err.count("error:") == 1


@pytest.mark.slow
def test_torchrun_trains_the_same_recipe(recipe_path: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "peftkit", "train", str(recipe_path), "--output", "run", "--no-report"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{Path('run', 'adapter')}\n"
    assert RunFolder(tmp_path / "run").read().world_size == 2


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_with_one_line_and_one_option_goes_on(
    recipe_path: Path, tmp_path: Path, peftkit: Command
) -> None:
    changes = [word for change in SAVING for word in ("--set", change)]
    arguments = ["train", str(recipe_path), "--output", "run", "--nproc", "2", *changes]

    with subprocess.Popen([*PEFTKIT, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as launcher:
        while launcher.poll() is None and not list((tmp_path / "run" / "checkpoints").glob("step-*")):
            time.sleep(0.05)
        children = psutil.Process(launcher.pid).children()
        os.kill(next(child.pid for child in children if child.environ()["RANK"] == "1"), signal.SIGKILL)
        killed = time.monotonic()
        _, said = launcher.communicate()
    failed = RunFolder(tmp_path / "run").read()
    seconds = time.monotonic() - killed
    done = peftkit(*arguments, "--resume", "--json", "--no-report")

    errors = [line for line in said.splitlines() if line.startswith("error:")]
    told = "process 2 of 2 was killed by SIGKILL. What was saved is whole: resume with --resume."
    assert launcher.returncode == 1
    assert errors == [f"error: {told}"]
    assert seconds < 15
    assert (failed.status, failed.error) == ("failed", told)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["world_size"] == 2
    assert RunFolder(tmp_path / "run").read().status == "finished"
    assert done.stderr.count("parameters are trained") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not GPUS, reason="there is no CUDA device")
def test_more_processes_than_gpus_are_refused(recipe_path: Path, tmp_path: Path, peftkit: Command) -> None:
    done = peftkit("train", str(recipe_path), "--nproc", str(GPUS + 1), "--output", "run")

    assert done.returncode == 2
    assert "processes need a GPU each" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 2, reason="there are no two CUDA devices")
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_two_gpus_train_together(method: str, recipe_path: Path, tmp_path: Path, peftkit: Command) -> None:
    done = peftkit("train", str(recipe_path), "--nproc", "2", "--output", "run", "--method", method)

    metrics = RunFolder(tmp_path / "run").read().metrics
    assert done.returncode == 0, done.stderr
    assert metrics.perplexity is not None
    assert metrics.base_perplexity is not None
    assert metrics.perplexity < metrics.base_perplexity
