"""A wheel carries all that the commands need, and works from any folder."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from peftkit.compatibility import EXTRAS
from peftkit.recipe.quantizers import QUANTIZERS
from peftkit.runs.versions import LOWEST, NEWEST

ROOT = Path(__file__).resolve().parents[1]
FOR_USERS = (*EXTRAS, *(quantizer.extra for quantizer in QUANTIZERS.values() if quantizer.extra))
"""The extras that a command or a recipe needs."""


@pytest.mark.slow
def test_a_wheel_holds_recipes_schema_and_base_and_works_elsewhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")

    run = [sys.executable, "-c", "from peftkit.cli import main; main()", "recipes", "check", "quickstart"]
    done = subprocess.run(run, cwd=tmp_path / "site", capture_output=True, text=True, check=False)

    assert {path.name for path in (ROOT / "recipes").glob("*.yaml")} == {
        name.rpartition("/")[2] for name in names if name.startswith("peftkit/assets/recipes/")
    }
    assert {
        "peftkit/assets/arguments.json",
        "peftkit/assets/constraints.txt",
        "peftkit/assets/constraints-lowest.txt",
        "peftkit/assets/recipe.schema.json",
        "peftkit/assets/tiny-gpt2/model.safetensors",
        "peftkit/py.typed",
        "peftkit/report/frame.html.j2",
        "peftkit/report/style.css",
    } <= names
    assert done.returncode == 0, done.stderr


def test_the_newest_tested_version_of_every_dependency_is_pinned() -> None:
    extras = project()["optional-dependencies"]
    wanted = [*project()["dependencies"], *(requirement for extra in extras.values() for requirement in extra)]

    assert {name_of(requirement) for requirement in wanted} - {"peftkit"} <= set(pins(NEWEST))


def test_the_lower_bound_of_every_dependency_is_its_lowest_tested_version() -> None:
    extras = project()["optional-dependencies"]
    wanted = [*project()["dependencies"], *(requirement for name in FOR_USERS for requirement in extras[name])]
    lowest = pins(LOWEST)

    assert [
        requirement
        for requirement in wanted
        if requirement.partition(",")[0] != f"{requirement.partition('>=')[0]}>={lowest[name_of(requirement)]}"
    ] == []


def test_what_both_lists_pin_of_the_libraries_is_no_newer_in_the_lowest() -> None:
    lowest, newest = pins(LOWEST), pins(NEWEST)

    assert set(lowest) <= set(newest)
    assert [name for name, pin in lowest.items() if Version(pin) > Version(newest[name])] == []


def test_ci_runs_both_lists() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    assert "-c constraints.txt -e '.[test]'" in script
    assert "-c constraints-lowest.txt -e ." in script
    assert "pytest tests/models tests/training tests/adapters" in script


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in found}


def test_a_commands_extra_has_what_the_command_asks_for_and_belongs_to_the_tests() -> None:
    extras = project()["optional-dependencies"]

    assert {name: {name_of(requirement) for requirement in extras[name]} for name in EXTRAS} == {
        name: set(libraries) for name, libraries in EXTRAS.items()
    }
    assert {f"peftkit[{name}]" for name in FOR_USERS} <= set(extras["test"])


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def name_of(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)
