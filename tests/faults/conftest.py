"""Runs that are there to be broken: real processes of the real command line, each begun in a fraction of a second."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from peftkit.data.grammar import task

# One process imports the libraries and forks a child for each command, so that faults fall into the command itself.
SERVER = """
import json, os, resource, sys, traceback
import bitsandbytes, datasets, peft, transformers.models.gpt2
import peftkit.models.base, peftkit.workflows.run, peftkit.workflows.verify_run
from peftkit.cli.app import main
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(job["folder"])
        os.environ.update(job["environment"])
        for name, value in job["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        if job["memory"]:
            pages = int(open("/proc/self/statm").read().split()[0])
            value = pages * resource.getpagesize() + job["memory"]
            resource.setrlimit(resource.RLIMIT_AS, (value, value))
        code = 70
        try:
            main(job["arguments"])
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Command:
    """A `peftkit` command that is running."""

    pid: int
    log_path: Path
    answers: IO[str]
    begun: float
    status: int | None = None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended yet."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def ended(self) -> int:
        """Wait for it: the exit status, or minus the signal that killed it."""
        if self.status is None:
            self.status = int(self.answers.readline())
        return self.status

    @property
    def log(self) -> str:
        """What it has printed."""
        return self.log_path.read_text(encoding="utf-8")

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Return when something has happened; the command is not waited for."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"it did not happen within {seconds} s:\n{self.log}")
            time.sleep(0.002)


class Forks:
    """Starts commands, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(
        self,
        folder: Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        limits: dict[str, int] | None = None,
        memory: int | None = None,
    ) -> Command:
        """Begin a command in a folder; `memory` is how many bytes it may take beside what the libraries have."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        log = self._folder / "log.txt"
        job = {
            "arguments": arguments,
            "folder": str(folder),
            "log": str(log),
            "environment": environment or {},
            "limits": limits or {},
            "memory": memory,
        }
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        pid = int(self._server.stdout.readline())
        return Command(pid, log, self._server.stdout, time.monotonic())

    def run(
        self, folder: Path, *arguments: str, **more: dict[str, str] | dict[str, int] | int | None
    ) -> tuple[int, str]:
        """A command from its start to its end: exit status and what it printed."""
        command = self.start(folder, *arguments, **more)  # type: ignore[arg-type]
        return command.ended(), command.log

    def close(self) -> None:
        """End the server."""
        self._server.communicate()


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A server for the whole session."""
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


RECIPE = """\
name: faults
method: lora
base: {model: builtin:tiny-gpt2}
lora: {r: 4, lora_alpha: 8, lora_dropout: 0.1}
data:
  train: {path: train.jsonl}
  validation: {path: validation.jsonl}
  format: completion
  max_length: 64
training:
  learning_rate: 3e-3
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 2
  max_steps: 12
  logging_steps: 2
  eval_strategy: epoch
  save_strategy: steps
  save_steps: 2
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a recipe and its data."""
    return write_work(tmp_path)


def write_work(folder: Path) -> Path:
    """Write the recipe and its data into a folder."""
    for split in ("train", "validation"):
        rows = task("train" if split == "train" else "validation")[:32]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder
