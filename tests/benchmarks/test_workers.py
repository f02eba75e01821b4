"""Jobs of the GPU benchmark run in processes of their own, whose end never reaches the benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gpu.harness import JobError
from benchmarks.gpu.workers import Workers

JOBS = "tests.benchmarks.jobs"


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """Processes that import no library."""
    pool = Workers(tmp_path, spare=1, libraries=())
    yield pool
    pool.close()


def test_a_job_gives_what_its_function_returns(workers: Workers) -> None:
    assert workers.call(f"{JOBS}:adds", {"first": 2, "second": 3}, 60) == 5


def test_a_job_that_raises_gives_one_line_and_a_traceback(workers: Workers) -> None:
    with pytest.raises(JobError, match="ValueError: no such thing") as caught:
        workers.call(f"{JOBS}:raises", {}, 60)

    assert "in raises" in caught.value.details


def test_a_job_whose_process_dies_gives_the_signal_and_its_last_output(workers: Workers) -> None:
    with pytest.raises(JobError, match="ended with signal SIGKILL") as caught:
        workers.call(f"{JOBS}:is_killed", {}, 60)

    assert "last words" in caught.value.details


def test_a_job_that_takes_too_long_is_ended_and_the_next_one_runs(workers: Workers) -> None:
    with pytest.raises(JobError, match="did not finish within"):
        workers.call(f"{JOBS}:sleeps", {}, 0.5)

    assert workers.call(f"{JOBS}:adds", {"first": 1, "second": 1}, 60) == 2
