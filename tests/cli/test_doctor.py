"""The doctor says what works, what is decided, and what to do about the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Doctor = Callable[..., subprocess.CompletedProcess[str]]
TOKEN = "hf_" + "a1" * 16


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    """`peftkit doctor` without a hub, with a token, and with other words about what peftkit requires."""

    def call(*arguments: str, required: str = "") -> subprocess.CompletedProcess[str]:
        if required:
            package = tmp_path / "site" / "peftkit-0.1.0.dist-info"
            package.mkdir(parents=True)
            about = f"Metadata-Version: 2.1\nName: peftkit\nVersion: 0.1.0\nRequires-Dist: {required}\n"
            (package / "METADATA").write_text(about, encoding="utf-8")
        paths = [str(tmp_path / "site"), str(Path(__file__).resolve().parents[2])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "peftkit", "doctor", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return call


def test_what_training_needs_works_here_and_a_hub_that_is_not_reached_is_no_failure(doctor: Doctor) -> None:
    done = doctor("--json")

    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert [name for name, check in checks.items() if not check["works"]] == ["reach the hub"]
    assert checks["reach the hub"]["detail"] == "HF_HUB_OFFLINE is set; a token is set"
    assert "libbitsandbytes" in checks["call bitsandbytes"]["detail"]
    assert report["supported_pythons"][0] == "3.11"
    assert [library["name"] for library in report["libraries"] if not library["lowest"]] == []
    assert report["hardware"]["device"] in ("cpu", "cuda", "mps")
    assert {library["name"] for library in report["libraries"]} >= {"torch", "transformers", "peft"}
    assert [decision["name"] for decision in report["decisions"]][:3] == ["precision", "base weights", "TF32"]
    assert TOKEN not in done.stdout


def test_a_library_that_is_missing_is_told_before_anything_is_imported(doctor: Doctor) -> None:
    done = doctor(required="abacus-of-tomorrow>=2")

    assert done.returncode == 1
    assert done.stdout == ""
    assert "abacus-of-tomorrow: not installed. Run pip install 'abacus-of-tomorrow>=2'." in done.stderr


@pytest.mark.slow
def test_a_library_that_is_too_old_is_a_failure_with_the_remedy_and_the_rest_is_told(doctor: Doctor) -> None:
    done = doctor(required="click>=999")

    assert done.returncode == 1
    assert "this machine cannot use these libraries." in done.stderr
    assert "Traceback" not in done.stderr
    words = " ".join(done.stdout.split())
    assert "use these libraries NO click" in words
    assert "unfit" in words
    assert "optimizer adamw_torch_fused" in words
