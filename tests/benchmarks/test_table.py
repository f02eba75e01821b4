"""The GPU benchmark's results: every part is in the JSON and in the table, with its figures or the reason for none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.goals import Goal
from benchmarks.gpu.harness import Figure, Outcome, Row
from benchmarks.gpu.table import folder_name, in_order, markdown, read_parts, shown, write_results

OUTCOMES = [
    Outcome("loss", "Loss", "passed", [Row("bf16", {"off": 1e-7, "bound": 1e-5}, passed=True)], 3.0),
    Outcome("speed", "Speed", "passed", [Row("peftkit", {"tokens/s": 12_600.4, "name": "a|b"}), Row("trl", note="no")]),
    Outcome("memory", "Memory", "failed", [], 1.0, "ValueError: no room", "Traceback"),
    Outcome("profile", "Profile", "not run", [], 0.0, "out of time"),
]
GOALS = [Goal("faster", "1.40 times", "met"), Goal("smaller", "", "not measured")]


def test_every_part_and_goal_is_in_the_table(machine: dict[str, Any]) -> None:
    table = markdown(OUTCOMES, GOALS, machine, smoke=False, seconds=61.0).splitlines()

    assert "# NVIDIA H100 80GB HBM3, 2026-11-27" in table
    assert "| Loss | passed | 3 |" in table
    assert "| Memory | failed: ValueError: no room | 1 |" in table
    assert "| Profile | not run: out of time | 0 |" in table
    assert "| bf16 | 1e-07 | 1e-05 | passed |  |" in table
    assert "| peftkit | 12,600 | a\\|b |  |  |" in table
    assert "| trl | - | - |  | no |" in table
    assert "| faster | 1.40 times | met |" in table
    assert "| smaller |  | not measured |" in table


def test_a_table_of_tiny_shapes_says_so(machine: dict[str, Any]) -> None:
    assert "Tiny shapes" in markdown(OUTCOMES, GOALS, machine, smoke=True, seconds=1.0)
    assert "Tiny shapes" not in markdown(OUTCOMES, GOALS, machine, smoke=False, seconds=1.0)


def test_the_json_holds_everything_and_no_part_of_a_file_is_left(tmp_path: Path, machine: dict[str, Any]) -> None:
    write_results(tmp_path, OUTCOMES, GOALS, machine, smoke=False, seconds=2.0)

    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [part["part"] for part in found["parts"]] == ["loss", "speed", "memory", "profile"]
    assert found["parts"][2]["traceback"] == "Traceback"
    assert found["machine"]["name"] == machine["name"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]


def test_parts_of_an_earlier_benchmark_of_the_same_machine_are_read_again(
    tmp_path: Path, machine: dict[str, Any]
) -> None:
    write_results(tmp_path, OUTCOMES, GOALS, machine, smoke=False, seconds=2.0)

    assert read_parts(tmp_path, machine) == OUTCOMES
    assert read_parts(tmp_path, {**machine, "name": "another card"}) == []
    assert read_parts(tmp_path / "none", machine) == []


def test_the_newest_outcome_of_a_part_counts_in_the_order_of_all_parts() -> None:
    newer = Outcome("memory", "Memory", "passed", [], 2.0)

    found = in_order([*OUTCOMES, newer], ["loss", "memory", "speed", "profile", "other"])

    assert [outcome.part for outcome in found] == ["loss", "memory", "speed", "profile"]
    assert found[1] is newer


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (3, "3"),
        (12_345, "12,345"),
        (12_345.6, "12,346"),
        (0.123456, "0.123"),
        (float("inf"), "inf"),
    ],
)
def test_a_figure_is_shown_with_the_digits_that_it_deserves(value: Figure, text: str) -> None:
    assert shown(value) == text


def test_results_are_named_by_card_and_date(machine: dict[str, Any]) -> None:
    assert folder_name(machine, smoke=False) == "nvidia-h100-80gb-hbm3-2026-11-27"
    assert folder_name(machine, smoke=True) == "nvidia-h100-80gb-hbm3-2026-11-27-smoke"
