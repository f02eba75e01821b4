"""Runs that are there to be broken: real processes of the real command line, each begun in a fraction of a second."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest

from peftkit.data.grammar import task
from peftkit.runs.verify import verify_run
from peftkit.storage import folder_hashes, sha256_of_file

# One process imports the libraries and forks a child for each command, so that faults fall into the command itself.
SERVER = """
import gc, json, os, resource, sys, traceback
import bitsandbytes, datasets, peft, transformers.models.gpt2
import peftkit.models.base, peftkit.training.run, peftkit.runs.verify
from peftkit.cli.app import main
from peftkit.recipe.library import find_recipe
from peftkit.recipe.loader import load_recipe

load_recipe(find_recipe("quickstart"))  # reads the installed libraries' arguments
gc.collect()
gc.freeze()

def command(job):
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    if job["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"], job["file_bytes"]))
    if job["memory_bytes"]:
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + job["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    code = 70
    try:
        main(job["arguments"])
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)

for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
    elif child := os.fork():
        print(child, flush=True)
    else:
        command(job)
"""

RECIPE = """\
name: faults
method: lora
base: {model: builtin:tiny-gpt2}
lora: {r: 4, lora_alpha: 8, lora_dropout: 0.1}
generation: {samples: 0}
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
WEIGHTS = {"full": "model/model.safetensors", "lora": "adapter/adapter_model.safetensors"}
WEIGHTS["qlora"] = WEIGHTS["lora"]


class Server:
    """Starts commands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(
        self,
        folder: Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        file_bytes: int | None = None,
        memory_bytes: int | None = None,
    ) -> Command:
        """Begin a command in a folder.

        Args:
            folder: where it is begun.
            arguments: what stands after `peftkit`.
            environment: variables beside those of the tests.
            file_bytes: how long a file may become.
            memory_bytes: how much it may take beside what the libraries have.
        """
        if arguments[0] == "train":
            arguments = ("train", "--no-report", *arguments[1:])  # drawing it takes as long as the run
        self._started += 1
        log = self._folder / f"{self._started}.log"
        limits = {"file_bytes": file_bytes, "memory_bytes": memory_bytes}
        job = {"arguments": arguments, "folder": str(folder), "log": str(log), "environment": environment or {}}
        return Command(self.ask({**job, **limits}), log, self)

    def ask(self, job: dict[str, Any]) -> int:
        """Send a line, and get its answer."""
        stdin, stdout = self._pipes()
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
        return int(stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the server has no pipes")
        return self._process.stdin, self._process.stdout


@dataclass
class Command:
    """A `peftkit` command that is running."""

    pid: int
    log_path: Path
    server: Server
    status: int | None = None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended yet."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def ended(self) -> int:
        """Wait for it: the exit status, or minus the signal that killed it."""
        if self.status is None:
            self.status = self.server.ask({"wait": self.pid})
        return self.status

    @property
    def log(self) -> str:
        """What it has printed."""
        return self.log_path.read_text(encoding="utf-8") if self.log_path.is_file() else ""

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when something has happened, or the command has ended."""
        while not condition() and not self.is_over:
            time.sleep(0.001)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and only its status is left."""
        state = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        return state == "Z"


class Work:
    """A folder with a recipe and its data, and the runs in it."""

    def __init__(self, path: Path, server: Server) -> None:
        self.path = path
        self._server = server
        for split in ("train", "validation"):
            rows = task("train" if split == "train" else "validation")[:32]
            (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")

    def write_training_rows(self, count: int) -> None:
        """Have so many rows to train on instead."""
        words = "one two three four five six seven eight nine ten eleven twelve"
        rows = ({"prompt": f"{number}:", "completion": f" {words} {number}"} for number in range(count))
        (self.path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def start(self, *arguments: str, **circumstances: Any) -> Command:
        """Begin a command here."""
        return self._server.start(self.path, *arguments, **circumstances)

    def run(self, *arguments: str, **circumstances: Any) -> tuple[int, str]:
        """A command from its start to its end: exit status and what it printed."""
        command = self.start(*arguments, **circumstances)
        return command.ended(), command.log

    def train(self, name: str, *arguments: str, **circumstances: Any) -> tuple[int, str]:
        """Train the recipe into a run folder of that name."""
        return self.run("train", "recipe.yaml", "--output", name, *arguments, **circumstances)

    def begin(self, name: str, *arguments: str, **circumstances: Any) -> Command:
        """Begin to train, and return when the first checkpoint is whole."""
        command = self.start("train", "recipe.yaml", "--output", name, *arguments, **circumstances)
        command.wait_for(lambda: bool(self.checkpoints(name)))
        return command

    def stop(self, name: str, *arguments: str) -> None:
        """Make a run that was told to stop when it had two checkpoints, and did."""
        while True:
            command = self.start("train", "recipe.yaml", "--output", name, *arguments)
            command.wait_for(lambda: len(self.checkpoints(name)) > 1)
            command.send(signal.SIGTERM)
            if command.ended() == 128 + signal.SIGTERM:
                return
            shutil.rmtree(self.path / name)  # it was quicker

    def checkpoints(self, name: str) -> list[Path]:
        """The checkpoints of a run, the newest first."""
        found = (path for path in (self.path / name / "checkpoints").glob("step-*") if "." not in path.name)
        return sorted(found, key=lambda path: -int(path.name.removeprefix("step-")))

    def result(self, name: str, method: str = "lora") -> tuple[str, list[dict[str, Any]]]:
        """What a finished run came to: the hash of its weights, and its metrics without the clock."""
        run = self.path / name
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        timeless = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
        return sha256_of_file(run / WEIGHTS[method]), timeless

    def manifest(self, name: str) -> dict[str, Any]:
        """The manifest of a run."""
        values: dict[str, Any] = json.loads((self.path / name / "manifest.json").read_text(encoding="utf-8"))
        return values

    def leftovers(self, name: str) -> list[str]:
        """What must not be in a run folder that was tidied: parts, and files that are not what was written."""
        run = self.path / name
        unsound = [f"{check.name}: {check.detail}" for check in verify_run(run)[1] if check.passed is False]
        return [*map(str, run.rglob(".*.part")), *unsound]

    def hashes(self, name: str) -> dict[str, str]:
        """Every file of a run as it is, but for who holds it."""
        return {file: sha256 for file, sha256 in folder_hashes(self.path / name).items() if file != ".lock"}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for the whole session."""
    server = Server(tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture
def work(tmp_path: Path, server: Server) -> Work:
    """A folder to train in."""
    return Work(tmp_path, server)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Work:
    """A folder with a run called `stopped` that has stopped half way, for tests that make copies of it."""
    work = Work(tmp_path_factory.mktemp("stopped"), server)
    work.stop("stopped")
    return work


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Callable[[str], Any]:
    """The result of a run of a method that nothing disturbs."""

    @cache
    def result(method: str) -> Any:
        work = Work(tmp_path_factory.mktemp("undisturbed"), server)
        status, log = work.train("run", "--method", method)
        if status:
            raise RuntimeError(log)
        return work.result("run", method)

    return result
