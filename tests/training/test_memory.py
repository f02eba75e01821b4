"""Memory that is short somewhere in a run, simulated by the error that torch raises there, and its peak."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy
import psutil
import pytest
import torch
from transformers import GPT2Model, PreTrainedModel

from peftkit.adapters.compare import check_adapter
from peftkit.adapters.merge import merge
from peftkit.api import evaluate
from peftkit.errors import MemoryRunError
from peftkit.evaluation.generation import generate
from peftkit.models.attach import count_parameters
from peftkit.models.base import LocatedBase
from peftkit.models.outline import kept_for_backward, loss_parts
from peftkit.planning.hardware import Hardware
from peftkit.recipe.loader import load_recipe
from peftkit.runs.folder import RunFolder
from peftkit.storage import sha256_of_file
from peftkit.training.memory import peak_memory_bytes, shortage
from peftkit.training.plan import plan
from peftkit.training.prepare import prepare_run
from peftkit.training.run import RunOptions, run
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


CUDA = (
    "CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 7.78 GiB of which 1.00 GiB is free"
)
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
AUTO = RunOptions(auto_batch=True)
QUICK = ["generation.samples=0", "training.max_steps=3"]


def refuse(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool], error: Exception) -> None:
    """Let a method raise an error where its arguments are more than memory would hold."""
    own = getattr(owner, name)

    def method(*arguments: Any, **more: Any) -> Any:
        if when(*arguments, **more):
            raise error
        return own(*arguments, **more)

    monkeypatch.setattr(owner, name, method)


def more_rows_than(most: int, *, training: bool) -> Callable[..., bool]:
    """Whether a model is given more rows in one of its modes."""
    return lambda model, input_ids, **_: model.training is training and len(input_ids) > most


def weights_of(folder: RunFolder) -> str:
    return sha256_of_file(folder.adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("error", [RuntimeError(CUBLAS), torch.AcceleratorError("CUDA error: out of memory")])
def test_a_pass_that_does_not_fit_is_made_with_fewer_rows(
    error: Exception, recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, GPT2Model, "forward", more_rows_than(2, training=True), error)

    _, manifest = run(load_recipe(recipe_path, overrides=QUICK, output=tmp_path / "run"), AUTO)

    assert (manifest.status, manifest.auto_batch) == ("finished", {"recipe": [4, 1], "used": [2, 2]})


def test_an_optimizer_step_that_fails_half_way_is_taken_again_from_untouched_weights(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halved = ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=2"]
    expected, _ = run(load_recipe(recipe_path, overrides=QUICK + halved, output=tmp_path / "expected"))
    failures = iter([True])

    def fails_half_way(optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> bool:
        fails = next(failures, False)
        optimizer.param_groups[0]["params"][0].data.add_(float(fails))
        return fails

    refuse(monkeypatch, torch.optim.AdamW, "step", fails_half_way, torch.OutOfMemoryError(CUDA))

    found, manifest = run(load_recipe(recipe_path, overrides=QUICK, output=tmp_path / "run"), AUTO)

    assert manifest.auto_batch == {"recipe": [4, 1], "used": [2, 2]}
    assert "an optimizer step does not fit into memory" in manifest.warnings[-1]
    assert weights_of(found) == weights_of(expected)


def test_an_optimizer_step_that_no_batch_makes_fit_says_so(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftkit.training.memory.memory_limit", lambda _: 1_000_000)
    refuse(monkeypatch, torch.optim.AdamW, "step", lambda *_, **__: True, torch.OutOfMemoryError(CUDA))

    with pytest.raises(MemoryRunError, match=r"no smaller batch would fit.*--auto-batch cannot help"):
        run(load_recipe(recipe_path, method="full", overrides=QUICK, output=tmp_path / "run"), AUTO)

    assert RunFolder(tmp_path / "run").read().status == "failed"


def test_an_evaluation_that_does_not_fit_names_its_batch(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, GPT2Model, "forward", more_rows_than(3, training=False), torch.OutOfMemoryError(CUDA))

    with pytest.raises(MemoryRunError, match=r"evaluation of 8 rows.*2\.1 GB.*per_device_eval_batch_size"):
        run(load_recipe(recipe_path, overrides=QUICK, output=tmp_path / "run"))


def test_an_evaluation_that_does_not_fit_is_made_with_fewer_rows_and_stays_so(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = run(load_recipe(recipe_path, overrides=QUICK, output=tmp_path / "expected"))
    refuse(monkeypatch, GPT2Model, "forward", more_rows_than(3, training=False), torch.OutOfMemoryError(CUDA))

    found, manifest = run(load_recipe(recipe_path, overrides=QUICK, output=tmp_path / "run"), AUTO)
    again, _ = run(load_recipe(recipe_path, overrides=QUICK, output=tmp_path / "run"), RunOptions(resume=True))

    assert manifest.auto_batch == {"recipe": [4, 1], "used": [4, 1], "evaluation": [8, 2]}
    assert weights_of(found) == weights_of(again) == weights_of(expected)


def test_a_final_evaluation_that_does_not_fit_loses_no_step(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*QUICK, "training.eval_strategy=no"]
    evaluations = iter(range(100))

    def is_last(model: Any, input_ids: torch.Tensor, **_: Any) -> bool:
        return not model.training and len(input_ids) == 8 and next(evaluations) == 3  # the first makes three passes

    refuse(monkeypatch, GPT2Model, "forward", is_last, torch.OutOfMemoryError(CUDA))

    _, manifest = run(load_recipe(recipe_path, overrides=overrides, output=tmp_path / "run"), AUTO)

    assert "Trying again from step 3" in manifest.warnings[-1]
    assert manifest.metrics.perplexity is not None


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_base_that_does_not_fit_says_so_and_nothing_is_written(
    method: str, recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, PreTrainedModel, "to", lambda _, place: place == "cpu", torch.OutOfMemoryError(CUDA))

    with pytest.raises(MemoryRunError, match=r"the base in float32 does not fit.*method: qlora.*no batch has a part"):
        run(load_recipe(recipe_path, method=method, output=tmp_path / "run"), AUTO)

    assert not (tmp_path / "run").exists()


def test_a_base_that_does_not_fit_while_it_is_quantised_is_no_other_kind_of_model(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, bitsandbytes.functional, "quantize_4bit", lambda *_, **__: True, torch.OutOfMemoryError(CUDA))

    with pytest.raises(MemoryRunError, match=r"the base, quantised, does not fit into memory: 2\.1 GB more") as raised:
        run(load_recipe(recipe_path, method="qlora", output=tmp_path / "run"))

    assert "causal language model" not in str(raised.value)


def test_an_end_that_does_not_fit_says_how_to_resume(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = iter([False, True])
    refuse(monkeypatch, LocatedBase, "load", lambda *_, **__: next(loads), torch.OutOfMemoryError(CUDA))

    with pytest.raises(MemoryRunError, match=r"the base in float32 does not fit into memory.*resume the run"):
        run(load_recipe(recipe_path, overrides=QUICK, output=tmp_path / "run"))

    assert RunFolder(tmp_path / "run").read().status == "failed"


def test_a_step_that_is_measured_says_what_would_fit(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, GPT2Model, "forward", more_rows_than(3, training=True), torch.OutOfMemoryError(CUDA))

    with pytest.raises(MemoryRunError, match=r"a step of 4 rows .* does not fit into memory"):
        plan(load_recipe(recipe_path), seconds=0.5)


def test_an_evaluation_that_is_measured_names_its_batch(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, GPT2Model, "forward", more_rows_than(3, training=False), torch.OutOfMemoryError(CUDA))

    with pytest.raises(MemoryRunError, match="the evaluation of 8 rows"):
        plan(load_recipe(recipe_path), seconds=0.5)


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda adapter, _: evaluate(adapter), "evaluating windows of 64 tokens"),
        (lambda adapter, _: generate(adapter, ["one"]), "generating 16 completions at a time"),
        (lambda adapter, output: merge([(Path(adapter), 1.0)], output / "merged"), "the adapter on its base in float"),
        (lambda adapter, _: check_adapter(Path(adapter)), "the logits of its sample"),
    ],
    ids=["evaluate", "generate", "merge", "verify"],
)
def test_other_commands_say_what_does_not_fit(
    work: Callable[[str, Path], Any], told: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = str(runs["lora"] / "adapter")
    monkeypatch.chdir(runs["lora"].parent)
    refuse(monkeypatch, GPT2Model, "forward", more_rows_than(0, training=False), torch.OutOfMemoryError(CUDA))

    with pytest.raises(MemoryRunError, match=f"{told}.* does not fit into memory: 2"):
        work(adapter, tmp_path)

    assert not (tmp_path / "merged").exists()
