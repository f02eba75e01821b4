"""A comparison: every run is there, the table is theirs, and nothing is trained twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import pytest

from peftkit.errors import InputError
from peftkit.experiments.compare import arms_of, with_rate

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_a_field_that_a_method_does_not_use_is_not_varied_for_it(recipe_path: Path) -> None:
    arms = arms_of(recipe_path, ("full", "lora"), {"lora.r": ("2", "4")}, ())

    assert [arm.name for arm in arms] == ["full", "lora r=2", "lora r=4"]
    assert [cell.name for cell in arms[1].cells(2)] == ["lora-r2-seed42", "lora-r2-seed43"]
    assert arms[2].file.recipe.lora.r == 4


def test_each_value_is_combined_with_each_other(recipe_path: Path) -> None:
    vary = {"lora.r": ("2", "4"), "training.weight_decay": ("0", "0.1")}

    names = [arm.name for arm in arms_of(recipe_path, ("lora",), vary, ())]

    assert names == [f"lora r={r} weight_decay={decay}" for r in (2, 4) for decay in ("0", "0.1")]


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ({"lora.rank": ("4",)}, "Use r"),
        ({"lora.r": ("0",)}, "lora.r"),
        ({"lora.r": ("4", "4")}, "two runs would be called lora-r4-seed42"),
        ({"training.seed": ("1", "2")}, "--seeds"),
    ],
)
def test_what_cannot_be_varied_is_told_before_anything_is_trained(
    vary: dict[str, tuple[str, ...]], words: str, recipe_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        arms_of(recipe_path, ("lora",), vary, ())

    assert words in " ".join(caught.value.lines())


def test_an_arm_may_have_another_learning_rate(recipe_path: Path) -> None:
    (arm,) = arms_of(recipe_path, ("lora",), {}, ())

    faster = with_rate(arm, "1e-2")

    assert faster.file.recipe.training.learning_rate == 1e-2
    assert faster.cells(1)[0].name == "lora-lr1e-2-seed42"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "lorra"], "Did you mean lora?"),
        (["--methods", ","], "names no method"),
        (["--vary", "lora.r"], "gives a field no values"),
        (["--set", "data.validation=null", "--set", "training.eval_strategy=no"], "has no data.validation"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_nothing_is_written(
    arguments: list[str], words: str, peftkit: Command, recipe_path: Path, tmp_path: Path
) -> None:
    done = peftkit("compare", str(recipe_path), "--output", "out", *arguments)

    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_table_is_that_of_the_run_folders_and_nothing_is_trained_twice(
    peftkit: Command, recipe_path: Path, tmp_path: Path
) -> None:
    expect = "expect=[{metric: perplexity, high: 1.0, source: nobody}]"
    command = ("compare", str(recipe_path), "--methods", "lora,qlora", "--seeds", "2", "--set", expect, "--generate")

    done = peftkit(*command, "--output", "out", "--json")

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [entry["name"] for entry in result["entries"]] == ["base", "base in nf4", "lora", "qlora"]
    lora = result["entries"][2]
    folders = [tmp_path / "out" / name for name in lora["runs"]]
    losses = [json.loads((folder / "manifest.json").read_text())["metrics"]["eval_loss"] for folder in folders]
    bleu = [json.loads((folder / "evaluation.json").read_text())["text"]["bleu"] for folder in folders]
    assert lora["metrics"]["eval_loss"]["mean"] == pytest.approx(fmean(losses), rel=1e-12)
    assert lora["metrics"]["eval_loss"]["standard_error"] == pytest.approx(stdev(losses) / 2**0.5, rel=1e-9)
    assert lora["metrics"]["bleu"]["mean"] == pytest.approx(fmean(bleu), rel=1e-12)
    assert [each["distance"] > 0 for each in result["expected"]] == [True, True]
    assert (tmp_path / "out" / "report.html").is_file()

    written = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}
    again = peftkit(*command, "--output", "out", "--json")

    assert json.loads(again.stdout) == result
    assert "lora-seed42 is finished already" in again.stderr
    assert {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")} == written


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_chooses_a_rate_for_each_method(
    peftkit: Command, recipe_path: Path, tmp_path: Path
) -> None:
    words = ["compare", str(recipe_path), "--methods", "full,lora", "--lr-per-method", "1e-5,3e-3", "--output", "out"]
    process = subprocess.Popen([sys.executable, "-m", "peftkit", *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
    first = tmp_path / "out" / "full-lr1e-5-seed42" / "manifest.json"
    while not (first.is_file() and json.loads(first.read_text())["status"] == "finished"):
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    trained = first.stat().st_mtime_ns

    done = peftkit(*words, "--json")

    assert done.returncode == 0, done.stderr
    tried = json.loads(done.stdout)["tried"]
    assert [(each["entry"], each["learning_rate"], each["chosen"]) for each in tried] == [
        ("full", "1e-5", False), ("full", "3e-3", True), ("lora", "1e-5", False), ("lora", "3e-3", True)]  # fmt: skip
    assert first.stat().st_mtime_ns == trained
