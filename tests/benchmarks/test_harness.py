"""The GPU benchmark's harness: every part is recorded, whatever becomes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from benchmarks.gpu.harness import Bench, JobError, NotApplicableError, Outcome, OutOfTimeError, Part, Row, run_parts


def sound(_: Bench) -> Iterator[Row]:
    yield Row("right", {"tokens/s": 1.0}, passed=True)


def broken(_: Bench) -> Iterator[Row]:
    yield Row("before", {"tokens/s": 2.0})
    raise ValueError("two\nlines")


def crashed(_: Bench) -> Iterator[Row]:
    yield Row("before")
    raise JobError("the process of a:b ended with signal SIGSEGV", "what it printed")


def wrong(_: Bench) -> Iterator[Row]:
    yield Row("loss", passed=False, note="3% off")


def elsewhere(_: Bench) -> Iterator[Row]:
    raise NotApplicableError("needs 70 GB")
    yield


def late(_: Bench) -> Iterator[Row]:
    yield Row("first")
    raise OutOfTimeError


def run(bench: Bench, *functions: Callable[[Bench], Iterator[Row]], alone: bool = True) -> list[Outcome]:
    parts = [Part(function.__name__, function.__name__, function, 60, alone=alone) for function in functions]
    return run_parts(parts, bench, lambda _: None, together=2)


@pytest.mark.parametrize("alone", [True, False])
def test_a_part_that_raises_is_recorded_and_the_others_still_run(bench: Bench, alone: bool) -> None:
    failed, passed = run(bench, broken, sound, alone=alone)

    assert (failed.status, failed.reason) == ("failed", "ValueError: two lines")
    assert failed.rows == [Row("before", {"tokens/s": 2.0})]
    assert "in broken" in failed.traceback
    assert (passed.status, passed.rows) == ("passed", [Row("right", {"tokens/s": 1.0}, passed=True)])


def test_a_job_that_crashes_is_recorded_with_what_it_printed(bench: Bench) -> None:
    (outcome,) = run(bench, crashed)

    assert outcome.reason == "the process of a:b ended with signal SIGSEGV"
    assert outcome.traceback == "what it printed"


def test_a_row_outside_its_bound_fails_its_part(bench: Bench) -> None:
    (outcome,) = run(bench, wrong)

    assert (outcome.status, outcome.reason) == ("failed", "loss: 3% off")


def test_a_part_that_does_not_apply_is_no_failure(bench: Bench) -> None:
    (outcome,) = run(bench, elsewhere)

    assert (outcome.status, outcome.reason) == ("not applicable", "needs 70 GB")


def test_parts_that_the_budget_does_not_reach_are_recorded_as_not_run(bench: Bench) -> None:
    (outcome,) = run(replace(bench, deadline=time.monotonic()), sound)

    assert (outcome.status, outcome.reason, outcome.rows) == ("not run", "out of time", [])


def test_a_part_that_the_budget_ends_keeps_the_rows_that_it_has(bench: Bench) -> None:
    (outcome,) = run(bench, late)

    assert (outcome.status, outcome.rows) == ("not run", [Row("first")])


def test_everything_is_saved_after_each_part(bench: Bench) -> None:
    saved: list[list[str]] = []
    parts = [Part(name, name, sound, 60, alone=True) for name in ("one", "two")]

    run_parts(parts, bench, lambda found: saved.append([each.status for each in found]), together=1)

    assert saved == [["not run", "not run"], ["passed", "not run"], ["passed", "passed"]]


def test_a_job_gets_no_more_time_than_the_benchmark_and_its_part_have(bench: Bench) -> None:
    now = time.monotonic()
    few = replace(bench, part_deadline=now + 5)

    _, arguments, seconds = few.call("module:function", rows=1)

    assert arguments == {"rows": 1}
    assert 4 < seconds <= 5
    with pytest.raises(OutOfTimeError):
        replace(bench, deadline=now).call("module:function")
