"""A folder in which the commands of a page run: the files that it speaks of, and runs that are finished already."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import peftkit as package
from peftkit.data.grammar import task

ROOT = Path(__file__).resolve().parents[2]
WARM = ROOT / "tests" / "docs" / "warm.py"
EMBEDDED = Path(package.__file__).parent / "assets" / "tiny-gpt2"

NAMED_FILE = re.compile(r"^```yaml\n# ([\w.-]+\.yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""A block that shows a whole file, whose name stands in its first line."""

MADE = re.compile(r"^peftkit recipes (?:copy \S+|new) (\S+)", re.MULTILINE)
"""A command that makes a recipe, which therefore must not be there before."""

FEWER = {
    "n_trials: 20": "n_trials: 2",
    "num_train_epochs: 3": "num_train_epochs: 0.2",
    "split: validation}": "split: validation, limit: 8}",
}
"""What is made smaller in a page's files, so that its test ends soon."""

FINISHED = {"mine": 42, "first": 42, "second": 7, "polite": 42, "brief": 7}
"""Runs that pages take for granted, with their seeds."""

RECORDS = ("peftkit.json", "sample.json", "manifest.json", "README.md")
"""What an adapter that another tool made does not have."""


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of a shell in which `peftkit` is ready at once, and whose cache of the hub has the embedded base as gpt2."""
    home, commands = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("bin")
    repository = home / "hub" / "models--gpt2"
    _write_long_base(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    environment = {**os.environ, **own}
    socket = _write_commands(commands)
    with subprocess.Popen([sys.executable, WARM, "serve", socket], env=environment, stdin=subprocess.PIPE) as server:
        while not socket.exists():
            assert server.poll() is None, "the libraries could not be imported"
            time.sleep(0.1)
        yield environment


def _write_long_base(folder: Path) -> None:
    """Write the embedded base with as many positions as GPT-2 has."""
    shutil.copytree(EMBEDDED, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("wpe.weight"))
    weights[name] = np.resize(weights[name], (1024, config["n_embd"]))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"n_positions": 1024}), encoding="utf-8")


def _write_commands(folder: Path) -> Path:
    """Write `peftkit`, and the `python` that its own processes start, as commands that ask at the socket returned."""
    socket = folder / "socket"
    python = f"exec {shlex.quote(sys.executable)}"
    ask = f"{python} -S -E {shlex.quote(str(WARM))} ask {socket}"
    scripts = {
        "peftkit": f'{ask} "$@"',
        "python": f'if [ "$1 $2" = "-m peftkit" ]; then shift 2; {ask} "$@"; fi\n{python} "$@"',
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return socket


@pytest.fixture(scope="session")
def finished_runs(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs of `FINISHED`, of the recipe that the README shows."""
    folder = tmp_path_factory.mktemp("finished")
    _write_files(folder, ROOT / "README.md")
    for seed in set(FINISHED.values()):
        command = ["peftkit", "train", "my.yaml", "--output", f"runs/{seed}", "--set", f"training.seed={seed}"]
        done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return {name: folder / "runs" / str(seed) for name, seed in FINISHED.items()}


@pytest.fixture
def folder_of(tmp_path: Path, finished_runs: Mapping[str, Path]) -> Callable[[Path], Path]:
    """Makes the folder of a page: what it shows and speaks of is there, and what it makes itself is not."""

    def prepare(page: Path) -> Path:
        text = page.read_text(encoding="utf-8")
        _write_files(tmp_path, page)
        for made in MADE.findall(text):
            (tmp_path / made).unlink(missing_ok=True)
        for name, run in finished_runs.items():
            if f"runs/{name}" in text and f"--output runs/{name}" not in text:
                shutil.copytree(run, tmp_path / "runs" / name)
        made_elsewhere = shutil.ignore_patterns(*RECORDS)
        shutil.copytree(finished_runs["mine"] / "adapter", tmp_path / "downloaded", ignore=made_elsewhere)
        shutil.copytree(EMBEDDED, tmp_path / "llama")
        return tmp_path

    return prepare


def _write_files(folder: Path, page: Path) -> None:
    """Write what a page's commands find in their folder."""
    _write_data(folder)
    _write_shown(folder, page)


def _write_data(folder: Path) -> None:
    """Write the data that pages speak of."""
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in task("train")[:160]]
    held_out = task("validation")[:16]
    sentences = "".join(row["completion"].strip() + "\n" for row in rows[:40])
    questions = [
        {"prompt": row["prompt"], "choices": [row["completion"], other["completion"]], "answer": 0}
        for row, other in zip(held_out[:4], held_out[4:8], strict=True)
    ]
    _write_rows(folder / "train.jsonl", rows[:100])
    _write_rows(folder / "questions.jsonl", questions)
    for name in ("validation.jsonl", "test.jsonl", "held-out.jsonl"):
        _write_rows(folder / name, held_out)
    for name in ("wiki.txt", "wiki.test.txt"):
        (folder / name).write_text(sentences, encoding="utf-8")
    with (folder / "guide.csv").open("w", encoding="utf-8", newline="") as file:
        facts = [(row["prompt"].strip(), row["completion"]) for row in rows]
        csv.writer(file).writerows([("facts", "sentence"), *facts])


def _write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_shown(folder: Path, page: Path) -> None:
    """Write the files that pages show: those of the README serve all, but where a page shows its own."""
    files = {
        name: text
        for shown in (ROOT / "README.md", ROOT / "docs" / "comparing.md", page)
        for name, text in NAMED_FILE.findall(shown.read_text(encoding="utf-8"))
    }
    if page.parent.name == "tutorials":  # all but the first go on with what that one has copied
        files["my.yaml"] = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
    for name, text in files.items():
        for many, few in FEWER.items():
            text = text.replace(many, few)
        (folder / name).write_text(text, encoding="utf-8")
