"""Pages that are made from the code are what it gives, and the README names what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from peftkit.cli.app import COMMANDS
from peftkit.recipe.library import shipped_recipes

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", ["commands.md", "hardware.md", "recipe.md"])
def test_a_reference_page_is_what_the_code_gives(page: str) -> None:
    code = "import runpy, sys; pages = runpy.run_path('docs/generate.py'); print(pages[sys.argv[1]](), end='')"
    function = page.replace(".md", "_page")

    made = subprocess.run([sys.executable, "-c", code, function], cwd=ROOT, capture_output=True, text=True, check=True)

    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == made.stdout


def test_the_generator_refuses_what_it_does_not_know() -> None:
    before = (ROOT / "docs" / "commands.md").stat().st_mtime_ns

    done = subprocess.run([sys.executable, "docs/generate.py", "--chek"], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 2
    assert "unrecognized arguments: --chek" in done.stderr
    assert (ROOT / "docs" / "commands.md").stat().st_mtime_ns == before


def test_the_readme_names_every_recipe_and_no_other_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    assert set(re.findall(r"peftkit (?!recipes)([a-z]+) ", readme)) - set(COMMANDS) <= {"fine", "by"}
    assert set(re.findall(r"^\| `([\w-]+)` \|", readme, re.MULTILINE)) == set(shipped_recipes())


def test_ci_runs_the_readmes_own_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    assert "pip install -c constraints.txt -e '.[test]' && pytest" in readme
    assert "-c constraints.txt -e '.[test]'" in script
    assert "\npytest\n" in script
