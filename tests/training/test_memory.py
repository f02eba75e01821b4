"""The peak that a process says is its own, and what a step is said to need."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy
import psutil
import pytest

from peftkit.models.attach import count_parameters
from peftkit.models.outline import kept_for_backward, loss_parts
from peftkit.planning.hardware import Hardware
from peftkit.recipe.loader import load_recipe
from peftkit.training.memory import peak_memory_bytes, shortage
from peftkit.training.prepare import prepare_run
from peftkit.training.train import build_trainer

CPU = Hardware("cpu", "a CPU", 24 * 10**9, 1, 2)
SAYS_ITS_PEAK = """
from peftkit.planning.hardware import Hardware
from peftkit.training.memory import peak_memory_bytes
print(peak_memory_bytes(Hardware("cpu", "a CPU", 24 * 10**9, 1, 2)))
"""


def _peak_of_a_process() -> int:
    command = [sys.executable, "-c", SAYS_ITS_PEAK]
    root = Path(__file__).resolve().parents[2]
    return int(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)


def test_the_peak_stays_when_memory_is_given_back() -> None:
    before = peak_memory_bytes(CPU)
    held = numpy.ones(before + 200_000_000, dtype=numpy.uint8)
    del held

    assert psutil.Process().memory_info().rss < before + 100_000_000
    assert peak_memory_bytes(CPU) > before + 200_000_000


def test_the_peak_of_a_process_does_not_begin_with_that_of_the_one_that_started_it() -> None:
    alone = _peak_of_a_process()
    held = numpy.ones(alone + 500_000_000, dtype=numpy.uint8)

    peak = _peak_of_a_process()

    assert held.nbytes > 1.5 * alone
    assert peak < 1.3 * alone


def test_what_a_step_in_half_precision_needs_is_what_its_rows_keep(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftkit.models.device._cpu_has_bf16", lambda: True)
    overrides = ["precision=bf16", "training.per_device_train_batch_size=16", "base.dropout=0.0"]
    run = prepare_run(load_recipe(recipe_path, method="full", overrides=overrides, output=tmp_path / "run"))
    trainer = build_trainer(run.load(), run)
    inputs = trainer.data_collator([run.data.train.sequences[number] for number in range(16)])
    batch = {name: inputs[name] for name in ("input_ids", "labels")}
    with kept_for_backward(trainer.model) as kept, trainer.compute_loss_context_manager():
        trainer.compute_loss(trainer.model, batch | {"use_cache": False})

    told = re.search(r"about ([0-9.]+) MB are needed", shortage(trainer, inputs, run.recipe, run.hardware).what)

    _, total = count_parameters(trainer.model)
    of_loss, of_token = loss_parts(trainer.model, "bf16", "cpu")
    tokens = inputs["input_ids"].numel()
    logits = 2 * 4 * 512 * 1024  # bytes of a float, logits at once, vocabulary
    expected = 16 * total + sum(kept.values()) + of_loss + of_token * tokens + logits
    assert told is not None
    assert float(told[1]) * 1e6 == pytest.approx(expected, rel=0.1)
