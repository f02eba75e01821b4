"""What is written about peftkit is true of its code."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from peftkit.cli.app import COMMANDS
from peftkit.data.grammar import task
from peftkit.recipe.library import shipped_recipes

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["commands.md", "hardware.md", "recipe.md"])
def test_a_reference_page_is_what_the_code_gives(page: str) -> None:
    code = "import runpy, sys; pages = runpy.run_path('docs/generate.py'); print(pages[sys.argv[1]](), end='')"
    function = page.replace(".md", "_page")

    made = subprocess.run([sys.executable, "-c", code, function], cwd=ROOT, capture_output=True, text=True, check=True)

    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == made.stdout


def test_the_readme_names_only_commands_and_recipes_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    assert set(re.findall(r"peftkit (?!recipes)([a-z]+) ", readme)) - set(COMMANDS) <= {"fine", "by"}
    assert set(re.findall(r"^\| `([\w-]+)` \|", readme, re.MULTILINE)) == set(shipped_recipes())


def test_ci_runs_the_readmes_own_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    assert "pip install -c constraints.txt -e '.[test]' && pytest" in readme
    assert "-c constraints.txt -e '.[test]'" in script
    assert "\npytest\n" in script


@pytest.mark.slow
def test_every_command_of_the_story_runs_in_its_order(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "story.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (recipe,) = (text for kind, text in blocks if kind == "yaml")
    (shown,) = (text for kind, text in blocks if kind == "csv")
    rows = [(row["prompt"].strip(), row["completion"]) for row in task("train")[:400]]
    with (tmp_path / "guide.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("facts", "sentence"), *rows])
    (tmp_path / "guide.yaml").write_text(recipe, encoding="utf-8")
    script = "set -e\n" + "".join(text for kind, text in blocks if kind == "sh")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert next(csv.reader(shown.splitlines())) == ["facts", "sentence"]
    assert "nothing is left to do" in done.stderr
    assert "more than chance" in done.stdout
    report = (tmp_path / "runs" / "guide" / "report.html").read_text(encoding="utf-8")
    assert "guide-model" in report or "merge" in report.lower()
