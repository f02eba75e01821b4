"""The newest names reach older libraries by the names that they know."""

from __future__ import annotations

import subprocess
import sys

import pytest

from peftkit.compatibility import RENAMED, spelled


@pytest.mark.parametrize(("new", "old"), RENAMED.items())
def test_an_older_library_gets_the_older_name_and_a_newer_one_that_has_both_the_newer(new: str, old: str) -> None:
    assert spelled({new: 1, "seed": 2}, {old, "seed"}) == {old: 1, "seed": 2}
    assert spelled({new: 1, "seed": 2}, {new, old, "seed"}) == {new: 1, "seed": 2}


def test_a_name_that_a_library_does_not_know_at_all_is_left_to_its_error() -> None:
    assert spelled({"activation_checkpointing": True, "other": 1}, set()) == {
        "activation_checkpointing": True,
        "other": 1,
    }


WITHOUT_OPTUNA = """\
import sys
sys.modules["optuna"] = None  # which Python then takes for a module that is not there
from peftkit.cli.app import _status
status = _status({arguments!r})
print(status, *(name for name in ("optuna.study", "pydantic", "torch") if name in sys.modules))
"""


@pytest.mark.parametrize("recipe", ["quickstart", "no-such-recipe"])
def test_tune_without_optuna_is_one_line_before_anything_is_loaded(recipe: str) -> None:
    done = without_optuna("tune", recipe, "--study", "none.yaml")

    assert done.stdout == "2\n"
    assert done.stderr == "error: peftkit tune needs optuna: pip install 'peftkit[tune]'\n"


def test_without_optuna_tune_still_explains_itself() -> None:
    done = without_optuna("tune", "--help")

    assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")
    assert "pip install 'peftkit[tune]'" in done.stdout


def without_optuna(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_OPTUNA.format(arguments=list(arguments))]
    return subprocess.run(command, capture_output=True, text=True, check=True)
