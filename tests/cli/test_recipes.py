"""`peftkit recipes new`, with options and at a terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
ANSWERED = ["--data", "train.jsonl", "--base", "builtin:tiny-gpt2"]


def test_options_alone_give_a_recipe_that_passes_the_check(peftkit: Command, recipe_path: Path) -> None:
    done = peftkit("recipes", "new", "my.yaml", *ANSWERED, "--memory", "16", "--method", "lora", "--yes")

    assert (done.returncode, done.stdout) == (0, "my.yaml\n"), done.stderr
    text = (recipe_path.parent / "my.yaml").read_text(encoding="utf-8")
    fields = ("method", "model", "r", "max_length", "learning_rate", "eval_strategy")
    assert [field for field in fields if not re.search(rf"^ *{field}: .* # \w", text, re.MULTILINE)] == []
    assert peftkit("recipes", "check", "my.yaml").returncode == 0


@pytest.mark.slow
def test_at_a_terminal_it_asks_for_the_rest(recipe_path: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "peftkit", "recipes", "new", "--base", "builtin:tiny-gpt2", "--memory", "16"]

    with subprocess.Popen(
        command, cwd=recipe_path.parent, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        os.write(ours, b"train.jsonl\n\nqlora\n")
        output, messages = process.communicate()
    os.close(ours)
    os.close(theirs)

    assert process.returncode == 0, messages
    assert output == "builtin-tiny-gpt2-train.yaml\n"
    assert "Data: a file, or a data set of the hub: " in messages
    assert "Base:" not in messages
    text = (recipe_path.parent / "builtin-tiny-gpt2-train.yaml").read_text(encoding="utf-8")
    assert "method: qlora" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--data is not given, and there is nobody to ask. Give it."),
        (["--yes"], "--data is not given"),
        (["--data", "train.jsonl"], "--base is not given, and there is nobody to ask. Give it, or --yes for gpt2."),
        ([*ANSWERED], "--format is not given, and there is nobody to ask. Give it, or --yes for auto."),
        (["small.yaml", *ANSWERED, "--yes"], "small.yaml: exists already."),
        (["no/my.yaml", *ANSWERED, "--yes"], "no: there is no such folder."),
        (["my.yaml", *ANSWERED, "--memory", "0", "--yes"], "0.0 is not in the range x>0"),
    ],
    ids=" ".join,
)
def test_a_missing_or_wrong_answer_is_status_2_and_writes_nothing(
    arguments: list[str], words: str, peftkit: Command, recipe_path: Path
) -> None:
    before = sorted(recipe_path.parent.iterdir())

    done = peftkit("recipes", "new", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(recipe_path.parent.iterdir()) == before
