"""The hub is asked once and without patience, and whatever it says is one line about the recipe's field.

Each test starts a process of its own, as its client reads its settings once; the hub is one on this machine.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

NO_PORT = "http://127.0.0.1:9"
SCRIPT = """\
import json, sys
from peftkit.errors import InputError
from peftkit.hub import Repo, open_snapshot
for kind, name, revision, wanted in json.loads(sys.argv[1]):
    try:
        snapshot = open_snapshot(Repo(kind, name, revision, "base.model"))
        snapshot.bring(wanted)
        print(snapshot.commit)
    except InputError as error:
        print(error)
"""
MODEL = ["model", "someone/tiny", None, ["config.json"]]


def told(environment: dict[str, str], *asked: list[Any]) -> tuple[list[str], str]:
    """What comes of asking for files of repositories, each a line, and what is said beside that."""
    command = [sys.executable, "-W", "error", "-c", SCRIPT, json.dumps(asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), done.stderr


@pytest.fixture
def refusing_hub(local_hub: Any) -> Any:
    """The local hub, with repositories that it refuses in each of its ways."""
    tiny = local_hub.repositories["models/someone/tiny"]
    for name, *refusal in (("gated", 403, "GatedRepo"), ("private", 401, ""), ("closed", 403, ""), ("broken", 503, "")):
        of_files = name == "gated"  # what such a one is, everybody may know
        local_hub.repositories[f"models/someone/{name}"] = type(tiny)(tiny.files, tuple(refusal), of_files)
    return local_hub


def test_each_refusal_of_the_hub_is_a_line_that_says_what_to_do(refusing_hub: Any, tmp_path: Path) -> None:
    names = ("gated", "private", "closed", "broken", "nothing")
    asked: list[list[Any]] = [["model", f"someone/{name}", None, ["config.json"]] for name in names]
    others: list[list[Any]] = [
        ["model", "someone/tiny", "v9", []],
        ["model", "a/b/c", None, []],
        [*MODEL[:3], ["model.bin"]],
    ]

    environment = refusing_hub.environment(tmp_path)
    found, messages = told(environment, *asked, *others)

    gated, private, closed, broken, nothing, revision, no_name, no_file = found
    page = f"{environment['HF_ENDPOINT']}/someone/gated"
    assert gated.startswith("base.model: the model someone/gated is gated, and not open to you yet.")
    assert f"Accept its licence at {page} and run `hf auth login`" in gated
    assert "the hub does not open the model someone/private to you (status 401). Run `hf auth login`" in private
    assert "(status 403)" in closed
    assert "someone/broken is not on this machine, and the hub gives no answer (Server error '503" in broken
    assert "the hub has no model someone/nothing, or it is private. Check the name; for a private one, run" in nothing
    assert revision == (
        "base.revision: the model someone/tiny has no revision v9. Name a branch, a tag or a whole commit hash."
    )
    assert "'a/b/c' is no name on the hub. Write it as user/name" in no_name
    assert "someone/tiny has no file model.bin" in no_file
    assert messages == ""


def test_what_the_cache_has_is_used_where_the_hub_does_not_answer_and_that_is_told_once(
    local_hub: Any, tmp_path: Path
) -> None:
    environment = local_hub.environment(tmp_path)
    commit = local_hub.repositories["models/someone/tiny"].commit
    asked = [MODEL, [*MODEL[:3], ["model.safetensors"]], ["dataset", "someone/rows", None, ["README.md"]]]
    assert told(environment, MODEL, asked[2])[0][0] == commit

    found, messages = told({**environment, "HF_ENDPOINT": NO_PORT}, *asked)

    assert found[0] == commit
    assert "someone/tiny is not whole on this machine (model.safetensors is missing), and the hub gives no" in found[1]
    assert found[1].endswith("Where there is a network, run `hf download someone/tiny`.")
    assert messages.count("what is in its cache is used") == 1
    offline, silent = told({**environment, "HF_HUB_OFFLINE": "1"}, *asked)
    assert offline[0] == commit
    assert "(model.safetensors is missing), and HF_HUB_OFFLINE is set." in offline[1]
    assert silent == ""


def test_a_hub_that_never_answers_is_waited_for_once(local_hub: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}", "HF_HUB_ETAG_TIMEOUT": "1"}
        started = time.monotonic()
        data_set = ["dataset", "someone/rows", "v1", []]

        found, _ = told(local_hub.environment(tmp_path, **own), MODEL, data_set, ["model", "someone/other", None, []])

    assert time.monotonic() - started < 6  # of which one second is waiting
    assert "someone/tiny is not on this machine, and the hub gives no answer (timed out)" in found[0]
    assert "run `hf download someone/rows --repo-type dataset --revision v1`" in found[1]


def test_a_cache_that_cannot_be_written_is_named(local_hub: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    found, _ = told(local_hub.environment(tmp_path / "file" / "home"), MODEL)

    assert found[0].endswith("cannot be used: Not a directory. Name a folder that can be written with HF_HOME.")
