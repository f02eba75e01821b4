"""A command whose extra is not installed says so first."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
