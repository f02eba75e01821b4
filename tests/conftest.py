"""What several rooms' tests share: a small base, small data, and the real command line."""

from __future__ import annotations

import atexit
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import settings

import peftkit as package
from peftkit.data.grammar import Split, task
from peftkit.hub import open_snapshot

# the same examples every time, so that a failure comes from a change; a busy machine is no failure
settings.register_profile("peftkit", deadline=None, derandomize=True)
settings.load_profile("peftkit")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ["PEFTKIT_CACHE"] = tempfile.mkdtemp(prefix="peftkit-tests-")
atexit.register(shutil.rmtree, os.environ["PEFTKIT_CACHE"], ignore_errors=True)

EMBEDDED = Path(package.__file__).parent / "assets" / "tiny-gpt2"
SPLITS: tuple[Split, ...] = ("train", "validation")
RECIPE = """\
name: small
method: lora
base:
  model: builtin:tiny-gpt2
lora: {r: 4, lora_alpha: 8, lora_dropout: 0.05}
data:
  train: {path: train.jsonl}
  validation: {path: validation.jsonl}
  format: completion
  max_length: 64
training:
  learning_rate: 3e-3
  per_device_train_batch_size: 4
  max_steps: 6
  logging_steps: 1
  eval_strategy: epoch
  save_strategy: "no"
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the settings of plugins that are not installed: tests then run one after the other, and without limit."""
    if find_spec("xdist") is None:
        parser.addoption("--numprocesses", help="without pytest-xdist, nothing")
        parser.addoption("--dist", help="without pytest-xdist, nothing")
    if find_spec("pytest_timeout") is None:
        parser.addini("timeout", help="without pytest-timeout, nothing")


def pytest_collection_finish() -> None:
    """Keep the libraries out of garbage collections, of which a run makes several: a quarter of the tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    """A recipe beside its data, small enough to train in a second."""
    return write_recipe(tmp_path)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each method, from one recipe."""
    from peftkit.recipe.loader import load_recipe
    from peftkit.training.run import run

    folder = tmp_path_factory.mktemp("runs")
    path = write_recipe(folder)
    for method in ("full", "lora", "qlora"):
        run(load_recipe(path, method=method, output=folder / method))
    return {method: folder / method for method in ("full", "lora", "qlora")}


def write_recipe(tmp_path: Path) -> Path:
    """Write `small.yaml` and its data into a folder."""
    for split in SPLITS:
        rows = task(split)[:24]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def peftkit(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The `peftkit` command in a process of its own, started in the test's folder."""

    def call(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "peftkit", *arguments]
        return subprocess.run(command, cwd=tmp_path, input=stdin, capture_output=True, text=True, check=False)

    return call


@dataclass
class HubRepository:
    """What the local hub has under one name."""

    files: dict[str, bytes]
    refusal: tuple[int, str] | None = None
    """Status and error code of every answer, as the hub's `GatedRepo`."""

    only_files: bool = False
    """Whether what the repository is may be asked nevertheless, as of one that is gated."""

    claimed: dict[str, int] = field(default_factory=dict)
    """Bytes of further files, which it only says it has."""

    @property
    def commit(self) -> str:
        """As git names commits: by what is in them."""
        return sha1(b"".join(name.encode() + content for name, content in self.files.items())).hexdigest()


CARD = b"""\
---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train.jsonl}
  - {split: validation, path: small/validation.jsonl}
- config_name: large
  data_files: large/*.jsonl
---
"""


class LocalHub(ThreadingHTTPServer):
    """Answers what the real client asks about models and data sets, and remembers it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HubAnswer)
        self.repositories: dict[str, HubRepository] = {}
        """By their place: `models/user/name` or `datasets/user/name`."""

        self.sent: list[str] = []
        """The files that went out."""

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """What a process needs to see this hub, and no other cache or token."""
        own = {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        return {**os.environ, **own, "HF_HUB_DISABLE_XET": "1", **more}


class _HubAnswer(BaseHTTPRequestHandler):
    server: LocalHub

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        asks_about = path.startswith("api/")
        path = path.removeprefix("api/")
        path = path if path.startswith(("models/", "datasets/")) else f"models/{path}"
        kind, user, name, *rest = [*path.split("/"), "", ""]
        rest = rest[: path.count("/") - 2]
        repository = self.server.repositories.get(f"{kind}/{user}/{name}")
        if repository is None:
            self._say(b"", 404, {"X-Error-Code": "RepoNotFound"})
        elif repository.refusal and not (asks_about and repository.only_files):
            self._say(b"", repository.refusal[0], {"X-Error-Code": repository.refusal[1]})
        elif len(rest) > 1 and rest[1] not in ("main", repository.commit):
            self._say(b"", 404, {"X-Error-Code": "RevisionNotFound"})
        elif rest[:1] == ["tree"]:
            sizes = {name: len(content) for name, content in repository.files.items()} | repository.claimed
            self._say_json([{"type": "file", "path": n, "size": size, "oid": "0" * 40} for n, size in sizes.items()])
        elif rest[:1] == ["resolve"]:
            self._send(repository, "/".join(rest[2:]))
        else:
            siblings = [{"rfilename": name} for name in repository.files]
            self._say_json({"id": f"{user}/{name}", "sha": repository.commit, "private": False, "siblings": siblings})

    def _send(self, repository: HubRepository, name: str) -> None:
        if name not in repository.files:
            self._say(b"", 404, {"X-Error-Code": "EntryNotFound"})
            return
        content = repository.files[name]
        if self.command == "GET":
            self.server.sent.append(name)
        self._say(content, headers={"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": repository.commit})

    def _say_json(self, value: object) -> None:
        self._say(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def _say(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def local_hub() -> Iterator[LocalHub]:
    """A hub on this machine, with the embedded base and two configurations of a small data set."""
    hub = LocalHub()
    other_weights = {"pytorch_model.bin": b"a pickle", "onnx/model.onnx": b"a graph", "consolidated.safetensors": b""}
    base = {path.name: path.read_bytes() for path in EMBEDDED.iterdir()}
    hub.repositories["models/someone/tiny"] = HubRepository({**base, **other_weights})
    rows = {split: "".join(json.dumps(row) + "\n" for row in task(split)[:24]).encode() for split in SPLITS}
    files = {f"small/{split}.jsonl": content for split, content in rows.items()}
    hub.repositories["datasets/someone/rows"] = HubRepository({"README.md": CARD, **files, "large/rows.jsonl": b"{}"})
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the hub's files for this process, empty, and nothing remembered of another."""
    from huggingface_hub import constants  # which reads its settings from the environment once

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    open_snapshot.cache_clear()
    yield tmp_path / "cache"
    open_snapshot.cache_clear()


@pytest.fixture
def varlen_on_cpu() -> Iterator[list[dict[str, Any]]]:
    """Attention over variable lengths by its definition, in any dtype; gives what the kernel was called with."""
    import torch

    from peftkit.models.attention_kernels import register_varlen

    calls: list[dict[str, Any]] = []

    def by_definition(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bounds: torch.Tensor,
        longest: int,
        *,
        scale: float,
        dropout: float,
        window: int,
    ) -> torch.Tensor:
        calls.append({"query": query, "key": key, "bounds": bounds.tolist(), "longest": longest, "dropout": dropout})
        groups = query.shape[1] // key.shape[1]
        documents = []
        for first, last in pairwise(bounds.tolist()):
            wide = (key[first:last].repeat_interleave(groups, 1), value[first:last].repeat_interleave(groups, 1))
            scores = torch.einsum("qhw,khw->hqk", query[first:last], wide[0]) * scale
            back = torch.arange(last - first)[:, None] - torch.arange(last - first)[None, :]
            hidden = (back < 0) | ((back > window) & (window >= 0))
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            documents.append(torch.einsum("hqk,khw->qhw", torch.dropout(weights, dropout, train=True), wide[1]))
        return torch.cat(documents)

    register_varlen(by_definition, (torch.float32, torch.bfloat16))
    yield calls
    register_varlen()
