"""Of a run folder, every file that the run wrote is checked, and what is wrong has its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peftkit.errors import TargetError
from peftkit.runs.folder import locked
from peftkit.runs.verify import Check, verify_run


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A finished run."""
    return shutil.copytree(runs["lora"], tmp_path / "run")


def checks(run: Path) -> dict[str, Check]:
    return {check.name: check for check in verify_run(run)[1]}


def change(run: Path, **values: object) -> None:
    """Let the manifest say something else."""
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    (run / "manifest.json").write_text(json.dumps({**manifest, **values}), encoding="utf-8")


def test_a_finished_run_is_sound(run: Path) -> None:
    manifest, found = verify_run(run)

    assert manifest.status == "finished"
    assert [(check.name, check.passed) for check in found] == [
        ("recipe.yaml", True),
        ("metrics.jsonl", True),
        ("audit.json", True),
        ("samples.json", True),
        ("adapter", True),
    ]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("recipe.yaml", "recipe.yaml"),
        ("metrics.jsonl", "metrics.jsonl"),
        ("samples.json", "samples.json"),
        ("adapter/adapter_model.safetensors", "adapter"),
        ("adapter/sample.json", "adapter"),
    ],
)
def test_a_file_that_was_changed_or_removed_is_named(name: str, part: str, run: Path) -> None:
    with (run / name).open("ab") as file:
        file.write(b" ")
    changed = checks(run)[part]
    (run / name).unlink()
    removed = checks(run)[part]

    assert (changed.passed, changed.detail) == (False, f"{name} has changed")
    assert (removed.passed, removed.detail) == (False, f"{name} is missing")


def test_a_card_may_be_changed_and_files_may_be_added(run: Path) -> None:
    (run / "adapter" / "README.md").write_text("mine", encoding="utf-8")
    (run / "notes.txt").write_text("mine", encoding="utf-8")

    assert {check.passed for check in checks(run).values()} == {True}


def test_an_output_that_is_gone_is_missing(run: Path) -> None:
    shutil.rmtree(run / "adapter")

    assert checks(run)["adapter"].passed is False


def test_a_run_whose_process_is_gone_was_interrupted(run: Path) -> None:
    change(run, status="running", files={}, outputs={})

    manifest, found = verify_run(run)

    assert manifest.status == "interrupted"
    assert {check.passed for check in found} == {None}
    assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["status"] == "running"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="is missing or damaged"):
        verify_run(tmp_path)


def test_looking_at_a_run_takes_nothing_from_who_holds_it(run: Path) -> None:
    with locked(run):
        before = (run / ".lock").read_bytes()
    verify_run(run)

    assert (run / ".lock").read_bytes() == before
