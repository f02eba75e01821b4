"""What a recipe needs of the hub is fetched once, and then a run needs no network.

The hub is one that answers on this machine to the real client, in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from peftkit.recipe.loader import load_recipe
from peftkit.workflows.fetch import fetch

RECIPE = """\
name: small
base: {model: someone/tiny}
lora: {r: 4}
data:
  train: {dataset: someone/rows, name: small}
  validation: {dataset: someone/rows, name: small}
  max_length: 64
training: {max_steps: 2, per_device_train_batch_size: 4, save_strategy: "no"}
"""
LOCAL = """\
name: local
base: {model: "builtin:tiny-gpt2"}
data: {train: {path: [train.jsonl, validation.jsonl]}, validation: {dataset: "builtin:grammar", name: task}}
"""


class Machine:
    """A machine with a cache of its own."""

    def __init__(self, hub: Any, folder: Path) -> None:
        self.hub = hub
        self.folder = folder
        (folder / "my.yaml").write_text(RECIPE, encoding="utf-8")

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The real command."""
        command = [sys.executable, "-m", "peftkit", *arguments]
        own = self.hub.environment(self.folder / "home", **environment)
        return subprocess.run(command, cwd=self.folder, env=own, capture_output=True, text=True, check=False)

    def offline(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same, as if it had been told that there is no network."""
        return self.call(*arguments, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")


@pytest.fixture
def machine(local_hub: Any, tmp_path: Path) -> Machine:
    return Machine(local_hub, tmp_path)


def test_fetch_brings_what_the_recipe_needs_and_nothing_else(machine: Machine) -> None:
    done = machine.call("fetch", "my.yaml", "--json")

    assert done.returncode == 0, done.stderr
    base, train, validation = json.loads(done.stdout)["items"]
    sent = machine.hub.sent
    assert {"config.json", "model.safetensors", "tokenizer.json"} < set(sent)
    assert {name for name in sent if "/" in name} == {"small/train.jsonl", "small/validation.jsonl"}
    assert not {"pytorch_model.bin", "consolidated.safetensors"} & set(sent)
    assert len(sent) == len(set(sent))
    tiny, rows = (machine.hub.repositories[place] for place in ("models/someone/tiny", "datasets/someone/rows"))
    assert (base["field"], base["commit"], base["missing"]) == ("base.model", tiny.commit, False)
    assert base["bytes"] > base["fetched_bytes"] > len(tiny.files["model.safetensors"])
    assert (train["commit"], train["fetched_bytes"]) == (rows.commit, len(rows.files["small/train.jsonl"]))
    assert (Path(validation["folder"]) / "small" / "validation.jsonl").is_file()
    assert "base.model, someone/tiny: 3.8 MB, 3.8 MB of it to fetch" in done.stderr


def test_what_needs_no_fetching_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(LOCAL, encoding="utf-8")
    for name in ("train.jsonl", "validation.jsonl"):
        (tmp_path / name).touch()

    fetched = fetch(load_recipe(tmp_path / "my.yaml"))

    assert fetched.fault is None
    assert [(item.field, item.name, item.origin) for item in fetched.items] == [
        ("base.model", "builtin:tiny-gpt2", "builtin"),
        ("data.train.path", str(tmp_path / "train.jsonl"), "local"),
        ("data.train.path", str(tmp_path / "validation.jsonl"), "local"),
        ("data.validation.dataset", "builtin:grammar", "builtin"),
    ]


def test_everything_that_is_missing_is_told_at_once_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    Path("my.yaml").write_text(RECIPE, encoding="utf-8")

    fetched = fetch(load_recipe(Path("my.yaml")))

    assert [item.missing for item in fetched.items] == [True] * 3
    assert fetched.fault is not None
    assert fetched.fault.lines() == [
        f"my.yaml:{line}: {field}: {name} is not on this machine, and HF_HUB_OFFLINE is set. "
        "Where there is a network, run `peftkit fetch my.yaml`."
        for line, field, name in (
            (2, "base.model", "someone/tiny"),
            (5, "data.train.dataset", "someone/rows"),
            (6, "data.validation.dataset", "someone/rows"),
        )
    ]


def test_a_disk_without_room_is_told_before_anything_is_fetched(machine: Machine) -> None:
    shards = {f"model-{number}.safetensors": 10**15 for number in range(2)}
    machine.hub.repositories["models/someone/tiny"].claimed = shards

    done = machine.call("fetch", "my.yaml")

    assert done.returncode == 2
    assert "2000000.0 GB are to be fetched, but the disk has" in done.stderr
    assert set(machine.hub.sent) <= {"config.json", "README.md"}


@pytest.mark.slow
def test_after_a_fetch_nothing_needs_a_network(machine: Machine) -> None:
    assert machine.call("fetch", "my.yaml").returncode == 0
    machine.hub.sent.clear()
    again = machine.call("fetch", "my.yaml")
    assert (again.returncode, machine.hub.sent) == (0, [])
    assert again.stderr.count("all of it here") == 3

    assert machine.offline("fetch", "my.yaml").returncode == 0
    trained = machine.offline("train", "my.yaml", "--output", "run", "--json")
    assert trained.returncode == 0, trained.stderr
    manifest = json.loads(trained.stdout)
    tiny, rows = (machine.hub.repositories[place] for place in ("models/someone/tiny", "datasets/someone/rows"))
    assert manifest["base"]["revision"] == tiny.commit
    assert [manifest["data"][role]["revision"] for role in ("train", "validation")] == [rows.commit] * 2
    for arguments in (("evaluate", "run"), ("merge", "run", "merged"), ("generate", "run", "--prompt", "The inn")):
        done = machine.offline(*arguments)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_adapter_stands_on_the_commit_it_was_trained_on_when_the_branch_has_moved(machine: Machine) -> None:
    assert machine.call("train", "my.yaml", "--output", "run").returncode == 0
    tiny = machine.hub.repositories["models/someone/tiny"]
    trained_on = tiny.commit
    tiny.files["config.json"] = tiny.files["config.json"].replace(b"0.1", b"0.2")
    assert machine.call("fetch", "my.yaml").returncode == 0  # the branch is at another commit now

    assert machine.offline("generate", "run", "--prompt", "The inn").returncode == 0

    shutil.rmtree(machine.folder / "home" / "hub" / "models--someone--tiny")
    missing = machine.offline("generate", "run", "--prompt", "The inn")
    assert missing.returncode == 2
    assert f"run `peftkit fetch run/recipe.yaml --set base.revision={trained_on}`" in missing.stderr


@pytest.mark.slow
def test_a_stream_reads_from_the_hub_and_after_a_fetch_from_the_cache(machine: Machine) -> None:
    arguments = ("train", "my.yaml", "--set", "data.streaming=true")
    assert machine.call(*arguments, "--output", "first").returncode == 0
    assert machine.call("fetch", "my.yaml").returncode == 0

    done = machine.offline(*arguments, "--output", "second", "--json")

    assert done.returncode == 0, done.stderr
    first = json.loads((machine.folder / "first" / "manifest.json").read_text(encoding="utf-8"))
    assert json.loads(done.stdout)["metrics"]["eval_loss"] == first["metrics"]["eval_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fetch", "my.yaml"), "my.yaml:6: data.validation.dataset: someone/rows is not on this machine"),
        (("train", "my.yaml"), "my.yaml:2: base.model: someone/tiny is not on this machine"),
        (("compare", "my.yaml", "--seeds", "1", "--output", "out"), "my.yaml:2: base.model: someone/tiny is not"),
        (("data", "my.yaml", "--set", "base.model=builtin:tiny-gpt2"), "my.yaml:5: data.train.dataset: someone/rows"),
        (("evaluate", "someone/tiny", "--recipe", "my.yaml"), "run `hf download someone/tiny`"),
        (("evaluate", "builtin:tiny-gpt2", "--recipe", "my.yaml"), "run `peftkit fetch my.yaml`"),
    ],
)
def test_every_command_says_what_is_missing_and_how_to_get_it(
    arguments: tuple[str, ...], words: str, machine: Machine
) -> None:
    done = machine.offline(*arguments)

    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
