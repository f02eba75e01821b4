"""What has changed since a run began is told and refused; what is finished stays; what is somebody else's stays too."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import peftkit


@pytest.fixture
def run(stopped: Any) -> Iterator[str]:
    """A copy of the run that was stopped."""
    shutil.copytree(stopped.path / "stopped", stopped.path / "run")
    yield "run"
    shutil.rmtree(stopped.path / "run")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("training.learning_rate=1e-4", "training.learning_rate: was 0.003, is 0.0001."),
        pytest.param("lora.lora_alpha=16", "lora.lora_alpha: was 8.0, is 16.0.", marks=pytest.mark.faults),
        pytest.param("training.seed=7", "training.seed: was 42, is 7.", marks=pytest.mark.faults),
        pytest.param("data.max_length=48", "data.max_length: was 64, is 48.", marks=pytest.mark.faults),
        pytest.param("lora.r=8", "lora.r: was 4, is 8.", marks=pytest.mark.faults),
    ],
)
def test_another_recipe_is_told_and_refused(change: str, told: str, run: str, stopped: Any) -> None:
    before = stopped.hashes(run)

    status, log = stopped.train(run, "--resume", "--set", change)

    assert status == 2, log
    assert f"error: {told}" in log
    assert "1 thing differs from when the run began." in log
    assert stopped.hashes(run) == before


@pytest.mark.faults
def test_every_change_is_told_at_once(run: str, stopped: Any) -> None:
    changes = ("--set", "training.learning_rate=1e-4", "--set", "training.seed=7")

    status, log = stopped.train(run, "--resume", *changes)
    other, other_log = stopped.train(run, "--resume", *changes, "--allow-changes", "training.seed")

    assert (status, other) == (2, 2)
    assert "resume with --allow-changes training.learning_rate,training.seed" in log
    assert "training.learning_rate: was 0.003" in other_log
    assert "training.seed: was" not in other_log


@pytest.mark.faults
@pytest.mark.parametrize("change", ["training.learning_rate=1e-4", "lora.lora_alpha=16", "training.seed=7"])
def test_a_change_that_is_allowed_acts_and_is_written_down(
    change: str, run: str, stopped: Any, undisturbed: Any
) -> None:
    field = change.partition("=")[0]

    status, log = stopped.train(run, "--resume", "--set", change, "--allow-changes", field)

    assert status == 0, log
    assert f"resuming with a change: {field}" in log
    assert [each["field"] for each in stopped.manifest(run)["resumed"][-1]["changes"]] == [field]
    assert stopped.result(run)[0] != undisturbed("lora")[0]


@pytest.mark.faults
@pytest.mark.parametrize("change", ["lora.r=8", "training.optim=sgd", "lora.target_modules=[c_attn]", "method=full"])
def test_what_the_state_is_made_of_cannot_be_allowed(change: str, run: str, stopped: Any) -> None:
    field, _, value = change.partition("=")
    arguments = ("--method", value) if field == "method" else ("--set", change)

    status, log = stopped.train(run, "--resume", *arguments, "--allow-changes", field)

    assert status == 2, log
    assert f"A run cannot be resumed with another {field}" in log


@pytest.mark.faults
def test_other_data_is_told_and_refused(run: str, stopped: Any) -> None:
    data = stopped.path / "train.jsonl"
    kept = data.read_bytes()
    data.write_bytes(kept.replace(b"a", b"b", 1))

    status, log = stopped.train(run, "--resume")

    data.write_bytes(kept)
    assert status == 2, log
    assert "error: data.train.train.jsonl: was sha256 " in log


@pytest.mark.faults
def test_another_base_is_told_and_refused(work: Any) -> None:
    base = work.path / "base"
    shutil.copytree(Path(peftkit.__file__).parent / "assets" / "tiny-gpt2", base)
    work.stop("run", "--set", f"base.model={base}")
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    status, log = work.train("run", "--set", f"base.model={base}", "--resume")

    assert status == 2, log
    assert "error: base.model.safetensors: was sha256 " in log


@pytest.mark.faults
@pytest.mark.parametrize(("name", "value"), [("versions", {"torch": "2.12.0"}), ("world_size", 2)])
def test_another_version_or_world_size_is_told_and_refused(name: str, value: Any, run: str, stopped: Any) -> None:
    manifest = stopped.manifest(run)
    manifest[name] = {**manifest[name], **value} if isinstance(value, dict) else value
    (stopped.path / run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    status, log = stopped.train(run, "--resume")

    assert status == 2, log
    assert f"error: {name}{'.torch' if isinstance(value, dict) else ''}: was 2" in log


def test_a_finished_run_is_left_as_it_is(work: Any) -> None:
    assert work.train("run")[0] == 0
    before = work.hashes("run")

    again, log = work.run("train", "run", "--resume")
    over, over_log = work.train("run")
    other, other_log = work.train("run", "--resume", "--set", "training.seed=7", "--allow-changes", "training.seed")

    assert (again, over, other) == (0, 2, 2)
    assert "run is finished: nothing is left to do" in log
    assert "exists already and is not empty" in over_log
    assert "It is finished, so it stays as it is" in other_log
    assert work.hashes("run") == before


def test_somebody_elses_files_are_never_touched(work: Any) -> None:
    folder = work.path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work", encoding="utf-8")
    refused, log = work.train("run")
    resumed, resumed_log = work.train("run", "--resume")

    assert (refused, resumed) == (2, 2)
    assert "run: exists already and is not empty" in log
    assert "manifest.json: is missing or damaged" in resumed_log
    assert work.hashes("run") == {"thesis.txt": work.hashes("run")["thesis.txt"]}


@pytest.mark.faults
def test_what_people_put_into_a_run_stays_there(run: str, stopped: Any, undisturbed: Any) -> None:
    folder = stopped.path / run
    theirs = ["notes.txt", "checkpoints/notes.txt", "checkpoints/step-1/notes.txt", ".notes.part"]
    shutil.copytree(stopped.checkpoints(run)[-1], folder / "checkpoints" / "step-3")
    progress = folder / "checkpoints" / "step-3" / "progress.json"
    progress.write_text(progress.read_text(encoding="utf-8").replace('"run_id": "', '"run_id": "x'), encoding="utf-8")
    for name in theirs:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine", encoding="utf-8")

    status, log = stopped.train(run, "--resume")

    assert status == 0, log
    assert all((folder / name).read_text(encoding="utf-8") == "mine" for name in theirs)
    assert progress.is_file()
    assert stopped.result(run) == undisturbed("lora")


@pytest.mark.faults
def test_an_output_that_the_run_did_not_write_stops_it(run: str, stopped: Any) -> None:
    theirs = stopped.path / run / "adapter" / "adapter_model.safetensors"
    theirs.parent.mkdir()
    theirs.write_bytes(b"somebody's")

    status, log = stopped.train(run, "--resume")

    assert status == 2, log
    assert "adapter: holds files that this run did not write" in log
    assert theirs.read_bytes() == b"somebody's"


def test_two_runs_at_once_are_refused_and_a_crash_frees_the_folder(work: Any, undisturbed: Any) -> None:
    first = work.begin("run")
    first.send(signal.SIGSTOP)

    second, log = work.train("run", "--resume")
    first.send(signal.SIGKILL)
    killed = first.ended()
    third, third_log = work.train("run", "--resume")

    assert (second, killed, third) == (2, -signal.SIGKILL, 0), log + third_log
    assert f"error: run: is in use by process {first.pid} on " in log
    assert work.result("run") == undisturbed("lora")
