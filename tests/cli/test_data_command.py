"""`peftkit data` tells people and programs the same."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_the_audit_fits_a_terminal_and_marks_what_is_taught(peftkit: Command, recipe_path: Path) -> None:
    done = peftkit("data", str(recipe_path), "--show", "1")

    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("\n\n")[0].splitlines()
    assert len(table) > 10
    assert max(map(len, table)) <= 80
    assert "documents" in done.stdout
    assert "⟦The " in done.stdout.replace("\n", "")
    assert "<|endoftext|>⟧" in done.stdout.replace("\n", "")


def test_the_same_facts_come_as_json_and_a_leak_is_a_warning(peftkit: Command, recipe_path: Path) -> None:
    change = ["--set", "data.validation={path: train.jsonl}"]

    told = json.loads(peftkit("data", str(recipe_path), *change, "--json").stdout)
    printed = peftkit("data", str(recipe_path), *change)

    assert told["leaked"] == told["train"]["counts"]["documents"] == 24
    assert "24 validation documents stand in the training data too" in printed.stderr
