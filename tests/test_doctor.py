"""Disks and the hub, as they are found: a real server answers, refuses, or says nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from peftkit import doctor
from peftkit.doctor import reach_hub, room_at
from peftkit.errors import RunError


class Hub(BaseHTTPRequestHandler):
    """Answers with the server's status, and keeps what it was asked."""

    asked: list[tuple[str, str | None]]
    status: int

    def do_GET(self) -> None:
        """One answer."""
        self.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A server that the hub's client takes for the hub."""
    handler = type("Handler", (Hub,), {"asked": [], "status": 200})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    server.server_close()


def test_a_hub_that_answers_is_asked_once_and_without_the_token(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "b2" * 16)

    told = reach_hub()

    assert told.startswith(constants.ENDPOINT)
    assert told.endswith("a token is set")
    assert hub.asked == [("/api/models?limit=1", None)]


def test_a_hub_that_refuses_is_told_with_its_status(hub: type[Hub]) -> None:
    hub.status = 503

    with pytest.raises(RunError, match="refuses with status 503"):
        reach_hub()


def test_a_hub_that_says_nothing_is_left_after_the_time_that_it_has(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(doctor, "_PATIENCE_SECONDS", 0.2)

        with pytest.raises(RunError, match=r"http://127\.0\.0\.1:\d+: .+; (no|a) token is set"):
            reach_hub()

    assert hub.asked == []


def test_no_hub_is_asked_when_it_is_not_to_be(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        reach_hub()

    assert hub.asked == []


def test_a_folder_that_is_not_there_yet_has_the_room_of_the_disk_that_it_will_be_on(tmp_path: Path) -> None:
    told = room_at(tmp_path / "new" / "deeper")

    assert told.startswith(f"{tmp_path / 'new' / 'deeper'}, ")
    assert told.endswith(" free")


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")

    with pytest.raises(RunError, match="file cannot be written to"):
        room_at(tmp_path / "file" / "folder")
