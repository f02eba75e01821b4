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

from peftkit.cli.app import main
from peftkit.fetch import fetch
from peftkit.recipe.loader import load_recipe

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


SESSION = """\
import json, sys
from peftkit.cli.app import app
for arguments in json.loads(sys.argv[1]):
    app.main(arguments, standalone_mode=False)
"""
STREAM = """\
from peftkit.data.sources import open_rows
from peftkit.recipe.schema import Data, Source
source = Source(dataset="someone/rows", name="small")
for row in open_rows(source, Data(train=source), "data.train", streaming=True):
    print(row.values["prompt"])
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
        return self.call(*arguments, HF_HUB_OFFLINE="1")

    def session(self, *commands: list[str]) -> None:
        """Several commands that must succeed without a network, in one process."""
        own = self.hub.environment(self.folder / "home", HF_HUB_OFFLINE="1")
        script = [sys.executable, "-c", SESSION, json.dumps(commands)]
        done = subprocess.run(script, cwd=self.folder, env=own, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


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

    items, fault = fetch(load_recipe(tmp_path / "my.yaml"))

    assert fault is None
    assert [(item.field, item.name, item.origin) for item in items] == [
        ("base.model", "builtin:tiny-gpt2", "builtin"),
        ("data.train.path", str(tmp_path / "train.jsonl"), "local"),
        ("data.train.path", str(tmp_path / "validation.jsonl"), "local"),
        ("data.validation.dataset", "builtin:grammar", "builtin"),
    ]


@pytest.mark.usefixtures("hub_cache")
def test_everything_that_is_missing_is_told_at_once_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(RECIPE, encoding="utf-8")

    items, fault = fetch(load_recipe(Path("my.yaml")))

    assert [item.missing for item in items] == [True] * 3
    assert fault is not None
    assert fault.lines() == [
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
    assert "2000000 GB are to be fetched, but the disk has" in done.stderr
    assert set(machine.hub.sent) <= {"config.json", "README.md"}


@pytest.mark.slow
def test_after_a_fetch_nothing_needs_a_network(machine: Machine) -> None:
    tiny, rows = (machine.hub.repositories[place] for place in ("models/someone/tiny", "datasets/someone/rows"))
    trained_on = tiny.commit
    assert machine.call("fetch", "my.yaml").returncode == 0
    assert machine.offline("fetch", "my.yaml").stderr.count("all of it here") == 3

    machine.session(["train", "my.yaml", "--output", "run"], ["evaluate", "run"], ["merge", "run", "merged"])

    manifest = json.loads((machine.folder / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["base"]["revision"] == trained_on
    assert [manifest["data"][role]["revision"] for role in ("train", "validation")] == [rows.commit] * 2

    # an adapter stands on the commit that it was trained on, also when the branch has moved on
    tiny.files["config.json"] = tiny.files["config.json"].replace(b"0.1", b"0.2")
    machine.hub.sent.clear()
    assert machine.call("fetch", "my.yaml").returncode == 0
    assert machine.hub.sent[0] == "config.json"
    machine.session(["generate", "run", "--prompt", "The inn"])
    shutil.rmtree(machine.folder / "home" / "hub" / "models--someone--tiny")
    missing = machine.offline("generate", "run", "--prompt", "The inn")
    assert missing.returncode == 2
    assert f"run `peftkit fetch run/recipe.yaml --set base.revision={trained_on}`" in missing.stderr


@pytest.mark.slow
def test_a_stream_reads_from_the_hub_and_after_a_fetch_from_the_cache(machine: Machine) -> None:
    def rows(**environment: str) -> str:
        own = machine.hub.environment(machine.folder / "home", **environment)
        command = [sys.executable, "-c", STREAM]
        return subprocess.run(command, env=own, capture_output=True, text=True, check=True).stdout

    from_hub = rows()
    assert machine.call("fetch", "my.yaml").returncode == 0

    assert rows(HF_HUB_OFFLINE="1") == from_hub
    assert from_hub.startswith("name: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("fetch my.yaml", "my.yaml:6: data.validation.dataset: someone/rows is not on this machine"),
        ("train my.yaml", "my.yaml:2: base.model: someone/tiny is not on this machine"),
        ("data my.yaml --set base.model=builtin:tiny-gpt2", "my.yaml:5: data.train.dataset: someone/rows is not on"),
        ("train my.yaml --set base.model=a/b", "run `peftkit fetch my.yaml --set base.model=…`"),
        ("evaluate builtin:tiny-gpt2 --recipe my.yaml", "run `peftkit fetch my.yaml`"),
        ("evaluate someone/tiny@v1 --recipe my.yaml", "run `hf download someone/tiny --revision v1`"),
        ("generate someone/tiny --prompt x", "run `hf download someone/tiny`"),
        pytest.param("compare my.yaml --seeds 1 --output out", "its message stands above", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("hub_cache")
def test_every_command_says_what_is_missing_and_how_to_get_it(
    arguments: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(RECIPE, encoding="utf-8")

    with pytest.raises(SystemExit) as left:
        main(arguments.split())

    assert left.value.code == 2
    assert words in capsys.readouterr().err
