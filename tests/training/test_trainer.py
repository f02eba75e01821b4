"""A step waits for its device once, and lasts until the device has computed it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from peftkit.models.kernels import use_fast_kernels
from peftkit.recipe.loader import load_recipe
from peftkit.training.prepare import prepare_run
from peftkit.training.train import build_trainer, train_from
from peftkit.training.trainer import TokenTrainer
from tests.training.waits import LateResults, Waits

Build = Callable[..., TokenTrainer]

FORWARD, OPTIMIZER, EVALUATION = 0.4, 0.1, 0.4
"""Seconds of a device's work."""

ACCUMULATED = ("training.gradient_accumulation_steps=2", "training.per_device_train_batch_size=2")
PACKED = ("data.packing=true", "data.max_length=128", "training.max_steps=2", "training.per_device_train_batch_size=1")


@pytest.fixture
def build(recipe_path: Path, tmp_path: Path) -> Iterator[Build]:
    """Makes the trainer of a run, of a recipe that is changed in places; the run ends with the test."""
    with ExitStack() as ending:

        def build(method: str, *changes: str) -> TokenTrainer:
            run = prepare_run(load_recipe(recipe_path, method=method, overrides=changes, output=tmp_path / "run"))
            model = run.load()
            use_fast_kernels(model, run.hardware)
            ending.enter_context(run.folder.created(run.file.resolved_yaml(), run.manifest))
            trainer = build_trainer(model, run)
            ending.callback(trainer.finish_checkpoints)
            return trainer

        yield build


class Watch(TrainerCallback):  # type: ignore[misc]
    """Counts what would wait for a GPU: in each step, and from there until it has been logged."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []
        self.logs: list[list[str]] = []
        self._open = ExitStack()

    def _count_into(self, lists: list[list[str]]) -> None:
        self._open.close()
        lists.append(self._open.enter_context(Waits()).names)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._open.close()
        self._count_into(self.steps)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._count_into(self.logs)

    def on_log(self, *_: Any, **__: Any) -> None:
        self._open.close()


class Late(TrainerCallback):  # type: ignore[misc]
    """Gives a device that computes late the work of a run: a forward pass, and an optimizer step."""

    def __init__(self, results: LateResults, model: Any) -> None:
        self._results = results
        self._model = model
        model.register_forward_hook(self._forward)

    def _forward(self, *_: Any) -> None:
        self._results.ask_for(FORWARD if self._model.training else EVALUATION)

    def on_train_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
        optimizer.optimizer.register_step_post_hook(lambda *_: self._results.ask_for(OPTIMIZER))


def body_of(trainer: TokenTrainer) -> Any:
    """What training and evaluation both call."""
    inner: Any = trainer.model
    return (inner.get_base_model() if hasattr(inner, "peft_config") else inner).base_model


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("changes", [ACCUMULATED, PACKED], ids=["accumulated", "packed"])
def test_a_step_waits_for_its_device_once(method: str, changes: tuple[str, ...], build: Build) -> None:
    trainer, watch = build(method, *changes, "training.eval_strategy=no"), Watch()
    trainer.add_callback(watch)

    train_from(trainer, None)

    assert len(watch.steps) == trainer.state.max_steps
    assert [step for step in watch.steps if len(step) > 1] == []


def test_logging_reads_only_the_sum_of_the_losses_which_is_on_the_host(build: Build) -> None:
    trainer, watch = build("lora", *ACCUMULATED, "training.eval_strategy=no"), Watch()
    trainer.add_callback(watch)

    train_from(trainer, None)

    assert [log for log in watch.logs if len(log) > 1] == []
    assert trainer._tr_loss.device.type == "cpu"


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_lasts_until_its_device_has_computed_it(accumulation: int, build: Build) -> None:
    trainer = build(
        "full", f"training.gradient_accumulation_steps={accumulation}", "training.max_steps=3",
        "training.per_device_train_batch_size=2", "training.eval_strategy=no",
    )  # fmt: skip
    results = LateResults()
    trainer.add_callback(Late(results, body_of(trainer)))
    start = time.perf_counter()

    with results:
        train_from(trainer, None)

    # the optimizer's last step is waited for on a GPU only
    assert trainer.progress.step_seconds >= 3 * accumulation * FORWARD + 2 * OPTIMIZER
    assert trainer.progress.step_seconds <= time.perf_counter() - start


def test_evaluation_and_saving_take_nothing_of_the_time_of_steps(build: Build) -> None:
    trainer = build(
        "full", "training.eval_strategy=steps", "training.eval_steps=1", "training.max_steps=3",
        "training.save_strategy=steps", "training.save_steps=1", "training.per_device_eval_batch_size=24",
    )  # fmt: skip
    results = LateResults()
    trainer.add_callback(Late(results, body_of(trainer)))
    start = time.perf_counter()

    with results:
        train_from(trainer, None)

    beside = 3 * EVALUATION + trainer.progress.checkpoint_seconds
    assert 3 * FORWARD < trainer.progress.step_seconds < time.perf_counter() - start - beside


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("changes", [ACCUMULATED, PACKED], ids=["accumulated", "packed"])
def test_a_gpu_is_waited_for_once_a_step(changes: tuple[str, ...], build: Build) -> None:
    trainer = build("lora", *changes, "training.eval_strategy=no")
    steps: list[list[str]] = []
    trainer.add_callback(GpuWaits(steps))

    train_from(trainer, None)

    assert [step for step in steps[1:-1] if len(step) > 1] == []  # the first and the last have other work, too


class GpuWaits(TrainerCallback):  # type: ignore[misc]
    """Lists torch's own warnings of operations that wait for the GPU, from one step to the next."""

    def __init__(self, steps: list[list[str]]) -> None:
        self._steps = steps
        self._caught: Any = None
        self._found: Any = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._end()
        self._caught = warnings.catch_warnings(record=True)
        self._found = self._caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # and it warns that it is a prototype

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._end()

    def _end(self) -> None:
        if self._caught is not None:
            torch.cuda.set_sync_debug_mode("default")
            self._steps.append([str(each.message) for each in self._found if "synchroniz" in str(each.message)])
            self._caught.__exit__(None, None, None)
            self._caught = None
