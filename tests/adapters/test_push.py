"""What goes to the hub: all that is needed, nothing of this machine, private, and with a token from nowhere else.

The hub is one that answers on this machine to the real client.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from peftkit.adapters.files import Adapter
from peftkit.adapters.merge import MergeSettings, merge

TOKEN = "hf_thisisasecret"


class Hub(ThreadingHTTPServer):
    """Takes what is uploaded, and remembers it."""

    def __init__(self, *, there_and_public: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.private = not there_and_public
        self.there = there_and_public
        self.requests: list[tuple[str, str, str | None]] = []
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        self._note()
        self._say({"id": "me/first", "private": self.server.private, "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            status = 409 if self.server.there else 200
            self._say({"url": f"{self.server.url}/me/first", "name": "me/first"}, status)
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self._say({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif self.path == "/api/validate-yaml":
            self._say({"errors": [], "warnings": []})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._say(
                {
                    "commitUrl": f"{self.server.url}/me/first/commit/{'0' * 40}",
                    "commitOid": "0" * 40,
                    "pullRequestUrl": None,
                    "success": True,
                }
            )
        else:
            self._say({}, 404)

    def _note(self) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Authorization")))

    def _say(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    yield from _serve(Hub())


@pytest.fixture
def public_hub() -> Iterator[Hub]:
    yield from _serve(Hub(there_and_public=True))


def _serve(hub: Hub) -> Iterator[Hub]:
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


def push(target: Path, *options: str, hub: Hub | None = None, token: str | None = TOKEN) -> Any:
    """The real command, with an environment that knows no other token."""
    environment = {"PATH": "/usr/bin", "HOME": str(target.parent), "HF_HUB_DISABLE_XET": "1"}
    if hub is not None:
        environment["HF_ENDPOINT"] = hub.url
    if token is not None:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-m", "peftkit", "push", str(target), "me/first", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def own(runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["qlora"] / "adapter", tmp_path / "own"))


def test_an_adapter_goes_to_a_private_repository_and_is_sound_there(own: Path, hub: Hub, tmp_path: Path) -> None:
    done = push(own, hub=hub)

    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("/me/first")
    assert [created["visibility"] for created in hub.created] == ["private"]
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, content in hub.files.items():
        (arrived / name).write_bytes(content)
    Adapter.read(arrived).check_sound()
    assert set(hub.files) == {path.name for path in own.iterdir()} - {"sample.json"}
    assert b'from_pretrained(base, "me/first")' in hub.files["README.md"]


def test_the_token_goes_to_the_hub_and_nowhere_else(own: Path, hub: Hub) -> None:
    done = push(own, "--json", hub=hub)

    sent = {path: authorization for _, path, authorization in hub.requests}
    writing = {path: authorization for path, authorization in sent.items() if "/repos/" in path or "/models/" in path}
    assert len(writing) >= 3
    assert set(writing.values()) == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr
    assert not any(TOKEN.encode() in content for content in hub.files.values())


def test_no_folder_of_this_machine_goes_along(own: Path, hub: Hub, tmp_path: Path) -> None:
    push(own, "--with-sample", hub=hub)

    assert "sample.json" in hub.files
    texts = {name: content.decode() for name, content in hub.files.items() if not name.endswith(".safetensors")}
    assert str(tmp_path) not in "".join(texts.values())
    files = json.loads(texts["peftkit.json"])["data"]["train"]["files"]
    assert list(files) == ["train.jsonl"]


def test_a_merged_model_goes_with_its_receipt(runs: dict[str, Path], hub: Hub, tmp_path: Path) -> None:
    merge([(runs["qlora"] / "adapter", 1.0)], tmp_path / "merged")

    done = push(tmp_path / "merged", "--public", hub=hub)

    assert done.returncode == 0, done.stderr
    assert [created["visibility"] for created in hub.created] == ["public"]
    assert json.loads(hub.files["merge.json"])["proof"]["relative_error"] < 1e-5
    assert b"relative error of the logits" in hub.files["README.md"]
    assert str(tmp_path.parent).encode() not in hub.files["merge.json"]


def test_a_dry_run_shows_what_would_go_and_sends_nothing(own: Path, hub: Hub) -> None:
    done = push(own, "--dry-run", hub=hub, token=None)

    assert done.returncode == 0, done.stderr
    assert "adapter_model.safetensors" in done.stdout
    assert "## How it was made" in done.stdout
    assert "sample.json" in done.stderr
    assert "would be private" in done.stderr
    assert hub.requests == []


def test_without_a_token_in_the_environment_nothing_is_sent(own: Path, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "token").write_text(TOKEN, encoding="utf-8")

    done = push(own, hub=hub, token=None)

    assert done.returncode == 2
    assert "HF_TOKEN: is not set" in done.stderr
    assert hub.requests == []


def test_a_public_repository_is_not_written_to_unasked(own: Path, public_hub: Hub) -> None:
    done = push(own, hub=public_hub)

    assert done.returncode == 2
    assert "is there already, and public" in done.stderr
    assert public_hub.files == {}
    assert push(own, "--public", hub=public_hub).returncode == 0
    assert public_hub.files


def test_what_was_changed_is_not_sent(own: Path, hub: Hub) -> None:
    (own / "tokenizer.json").write_text("{}", encoding="utf-8")

    done = push(own, hub=hub)

    assert (done.returncode, hub.requests) == (2, [])
    assert "tokenizer.json has changed" in done.stderr


def test_a_merge_without_proof_is_told(runs: dict[str, Path], tmp_path: Path) -> None:
    merge([(runs["lora"] / "adapter", 1.0)], tmp_path / "merged", MergeSettings(verify=False))

    done = push(tmp_path / "merged", "--dry-run")

    assert "merged without the comparison" in done.stderr


def test_a_hub_that_cannot_be_reached_is_one_line(own: Path) -> None:
    hub = Hub()
    hub.server_close()

    done = push(own, hub=hub)

    assert done.returncode == 1
    assert "the hub cannot be written to" in done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stderr
