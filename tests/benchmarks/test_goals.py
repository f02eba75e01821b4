"""Goals are judged by what was measured on the card that they name, and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gpu.goals import goals
from benchmarks.gpu.harness import Outcome, Row


def outcomes(*, speed: float, trl: float, waits: float, warned: float, ratio: float, end: float) -> list[Outcome]:
    race = [
        Row("peftkit", {"tokens/s": speed, "peftkit to it": 1.0}),
        Row("trl", {"tokens/s": 1.0, "peftkit to it": trl}),
    ]
    return [
        Outcome("llama-lora", "", "passed", race),
        Outcome("profile", "", "passed", [Row("10 steps", {"waits a step": waits, "warned": warned})]),
        Outcome("estimates", "", "passed", [Row("full", {"ratio": ratio}), Row("lora", {"ratio": 1.0})]),
        Outcome("end", "", "passed", [Row("lora", {"ratio": end})]),
    ]


MET = outcomes(speed=12_600, trl=1.4, waits=1.0, warned=1.0, ratio=0.95, end=1.0)
MISSED = outcomes(speed=12_400, trl=1.2, waits=1.0, warned=2.0, ratio=0.85, end=1.2)


def test_goals_that_the_figures_reach_are_met(machine: dict[str, Any]) -> None:
    found = goals(MET, machine, smoke=False)

    assert [goal.status for goal in found] == ["met"] * 5
    assert [goal.measured for goal in found] == [
        "12,600 tokens/s",
        "1.40 times",
        "1.0 a step",
        "5% off at most",
        "0.0% more at most",
    ]


def test_goals_that_the_figures_do_not_reach_are_not_met(machine: dict[str, Any]) -> None:
    assert [goal.status for goal in goals(MISSED, machine, smoke=False)] == ["not met"] * 5


def test_the_goal_of_an_h100_is_not_measured_on_another_card(machine: dict[str, Any]) -> None:
    found = goals(MET, {**machine, "name": "NVIDIA L4"}, smoke=False)

    assert [goal.status for goal in found] == ["not measured", "met", "met", "met", "met"]


@pytest.mark.parametrize(("device", "smoke"), [("cuda", True), ("cpu", False)])
def test_neither_tiny_shapes_nor_a_cpu_measure_a_goal(machine: dict[str, Any], device: str, smoke: bool) -> None:
    found = goals(MET, {**machine, "device": device, "name": "AMD EPYC"}, smoke=smoke)

    assert {goal.status for goal in found} == {"not measured"}


def test_waits_are_those_of_peftkit_in_every_race(machine: dict[str, Any]) -> None:
    race = Outcome("full-rows", "", "passed", [Row("peftkit", {"waits": 3.0}), Row("trl", {"waits": 19.0})])

    found = goals([*MET, race], machine, smoke=False)

    assert (found[2].measured, found[2].status) == ("3.0 a step", "not met")


def test_a_part_that_was_not_run_measures_no_goal(machine: dict[str, Any]) -> None:
    assert {goal.status for goal in goals([], machine, smoke=False)} == {"not measured"}
