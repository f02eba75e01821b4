"""A step that does not fit into memory says what would; a batch that is to be found is found."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.faults

ROWS = 2048
BATCH = ("--set", f"training.per_device_train_batch_size={ROWS}", "--set", "training.gradient_accumulation_steps=1")
ROOM = 900_000_000
"""Bytes beside what the libraries have: too few for a step of so many rows, enough for a quarter of them."""


def test_a_step_that_does_not_fit_says_what_would(work: Any) -> None:
    work.write_training_rows(ROWS)

    status, log = work.train("run", "--method", "full", *BATCH, "--set", "training.max_steps=2", memory_bytes=ROOM)

    told = log.splitlines()[-1]
    assert status == 1, log
    assert told.startswith("error: ")
    assert f"a step of {ROWS} rows of " in told
    assert "does not fit into memory" in told
    assert "training.per_device_train_batch_size=" in told
    assert "--auto-batch" in told
    assert work.leftovers("run") == []


def test_a_batch_that_fits_is_found_kept_and_written_down(work: Any) -> None:
    work.write_training_rows(ROWS)

    steps = ("--set", "training.max_steps=2", "--set", "training.save_steps=1")

    status, log = work.train("run", "--method", "full", *BATCH, *steps, "--auto-batch", memory_bytes=ROOM)

    found = work.manifest("run")["auto_batch"]
    rows, accumulation = found["used"]
    assert status == 0, log
    assert found["recipe"] == [ROWS, 1]
    assert rows < ROWS
    assert rows * accumulation == ROWS
    assert f"per_device_train_batch_size: {rows}" in (work.path / "run" / "recipe.yaml").read_text(encoding="utf-8")
    assert log.count("Trying again") == len(work.manifest("run")["warnings"])
    again, again_log = work.train("run", "--method", "full", *BATCH, *steps, "--resume")
    assert (again, "nothing is left to do" in again_log) == (0, True), again_log
