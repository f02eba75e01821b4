"""A token is in no file, no log and no cache, whatever happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_" + "QwErTyUiOpAsDfGhJkLzXcVbNm"
"""Of the hub's form, and nobody's."""


def circumstances(work: Any) -> dict[str, Any]:
    """A user's environment with a token in it, and a cache of its own."""
    return {"environment": {"HF_TOKEN": TOKEN, "PEFTKIT_CACHE": str(work.path / "cache")}}


def copies(work: Any) -> list[Path]:
    """Every file with the token in it, of all that the commands can have written."""
    return [path for path in work.path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_the_token_of_the_environment_is_written_nowhere(work: Any) -> None:
    commands = (
        ("train", "recipe.yaml", "--output", "run"),
        ("train", "run", "--resume"),
        ("verify", "run", "--json"),
        ("merge", "run/adapter", "merged"),
        ("train", "recipe.yaml", "--set", "base.model=nobody/nothing", "--output", "other"),
        ("train", "recipe.yaml", "--set", f"base.model={TOKEN}/nothing", "--output", "third"),
    )

    logs = [work.run(*command, **circumstances(work)) for command in commands]

    assert [status for status, _ in logs[:4]] == [0, 0, 0, 0], logs
    assert logs[4][0] == logs[5][0] == 2, logs
    assert all(TOKEN not in log for _, log in logs)
    assert copies(work) == []


@pytest.mark.parametrize(
    "line",
    [
        f"description: my token is {TOKEN}",
        pytest.param(f"hub_token: {TOKEN}", marks=pytest.mark.faults),
        pytest.param(f"description: https://me:{TOKEN}@example.org", marks=pytest.mark.faults),
        pytest.param(f"{TOKEN}: 1", marks=pytest.mark.faults),
    ],
)
def test_a_recipe_with_a_token_is_refused_before_anything_is_written(line: str, work: Any) -> None:
    recipe = work.path / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(f"{text}{line}\n", encoding="utf-8")

    status, log = work.train("run", environment={"PEFTKIT_CACHE": str(work.path / "cache")})
    checked, checked_log = work.run("recipes", "check", "recipe.yaml")

    assert (status, checked) == (2, 2), log + checked_log
    assert TOKEN not in log
    assert TOKEN not in checked_log
    assert f"recipe.yaml:{len(text.splitlines()) + 1}" in log
    assert copies(work) == [recipe]
    assert not (work.path / "run").exists()
