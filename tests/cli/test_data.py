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
    table = done.stdout.split("\n\n")[1].splitlines()
    assert len(table) > 10
    assert max(map(len, table)) <= 80
    assert "documents" in done.stdout
    assert "⟦The " in done.stdout.replace("\n", "")
    assert "<|endoftext|>⟧" in done.stdout.replace("\n", "")


def test_documents_are_printed_token_by_token_on_request(peftkit: Command, recipe_path: Path) -> None:
    done = peftkit("data", str(recipe_path), "--show", "1", "--tokens")

    assert done.returncode == 0, done.stderr
    last = done.stdout.rstrip().splitlines()[-1].split()
    assert last[1:] == ["0", "<|endoftext|>", "<|endoftext|>", "yes"]


def test_a_leak_is_counted_and_then_an_error(peftkit: Command, recipe_path: Path) -> None:
    change = ["--set", "data.validation={path: train.jsonl}"]

    done = peftkit("data", str(recipe_path), *change, "--json")
    told = json.loads(done.stdout)

    assert told["leak"] == {"documents": 24, "share": 1.0}
    assert told["train"]["counts"]["documents"] == 24
    assert done.returncode == 2
    assert "data.validation: 24 validation documents, 100.0% of the tokens, are trained on too" in done.stderr


def test_the_format_is_told_with_its_reason(peftkit: Command, recipe_path: Path) -> None:
    done = peftkit("data", str(recipe_path), "--show", "0", "--set", "data.format=auto")

    assert "24 rows of the format completion: its rows have prompt and completion" in done.stdout
