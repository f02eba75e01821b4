"""Train a model on prepared data, and see that something was learnt."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from peftkit import console
from peftkit.data.collator import Collator
from peftkit.data.prepare import RunData
from peftkit.errors import RunError
from peftkit.models.attach import adapter_has_effect
from peftkit.models.attention import takes_bounds
from peftkit.models.kernels import use_fast_kernels
from peftkit.planning.decisions import Attention
from peftkit.planning.hardware import Hardware
from peftkit.planning.precision import ChosenPrecision
from peftkit.planning.sharding import is_sharded
from peftkit.recipe.schema import Recipe
from peftkit.runs.checkpoints import Checkpoint
from peftkit.runs.folder import RunFolder
from peftkit.storage import write_text
from peftkit.training.arguments import products_as_before, training_arguments
from peftkit.training.checkpoint import Progress
from peftkit.training.conduct import Conduct
from peftkit.training.health import HealthWatch
from peftkit.training.memory import peak_memory_bytes, reset_peak_memory, shortage
from peftkit.training.processes import ALONE, Processes
from peftkit.training.progress import ProgressReport
from peftkit.training.records import MetricsFile
from peftkit.training.sharded import Shards
from peftkit.training.signals import StopRequest
from peftkit.training.trainer import TokenTrainer
from peftkit.training.weights import Weights

__all__ = ["TrainingResult", "Work", "build_trainer", "train"]

_FLASH: Attention = "flash_attention_2"  # it tells documents apart by their positions in a single row only


@dataclass(frozen=True)
class Work:
    """A run that is ready to train: what, on what, where, and from which step."""

    recipe: Recipe
    data: RunData
    pad_token_id: int
    hardware: Hardware
    precision: ChosenPrecision
    folder: RunFolder
    run_id: str
    warnings: list[str]
    """What was told of it, to be added to."""

    stop: StopRequest
    check_inputs: Callable[[], None] = lambda: None
    checkpoint: Checkpoint | None = None
    """Where to go on; None to begin."""

    adopt: bool = False
    """Whether hyperparameters have changed since the checkpoint, and are to act."""

    processes: Processes = ALONE

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights."""
        return is_sharded(self.recipe, self.processes.count)

    def with_training(self, training: dict[str, Any]) -> Work:
        """The same with other values of some hyperparameters."""
        changed = self.recipe.training.model_copy(update=training)
        return replace(self, recipe=self.recipe.model_copy(update={"training": changed}))

    def warn(self, message: str) -> None:
        """Tell what may surprise, and write it down."""
        console.warning(message)
        self.warnings.append(message)


@dataclass(frozen=True)
class TrainingResult:
    """What training measured, over all the processes that a run took."""

    train_tokens: int
    train_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    train_loss: float | None
    base_perplexity: float | None
    eval_loss: float | None
    perplexity: float | None
    skipped_steps: int
    checkpoints: int
    checkpoint_seconds: float


@products_as_before()
def train(model: Any, work: Work) -> TrainingResult:
    """Train `model` in place through the Trainer, measuring the validation data before and after.

    Raises:
        RunError: a loss or a weight is not finite, a step does not fit into memory, or training changed nothing.
        Stopped: a signal came; the step is saved.
    """
    set_seed(work.recipe.training.seed)
    use_fast_kernels(model, work.hardware)
    reset_peak_memory(work.hardware)
    with _own_forward(model):
        return _trained(model, work)


@contextlib.contextmanager
def _own_forward(model: Any) -> Iterator[None]:
    """Give a model its own `forward` back in the end: training has put autocast and a loss in its place."""
    modules = [model, model.get_base_model()] if hasattr(model, "peft_config") else [model]
    before = [vars(module).get("forward") for module in modules]
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            for name in ("forward", "_original_forward"):  # the second is Accelerate's
                vars(module).pop(name, None)
            if forward is not None:
                module.forward = forward


def _trained(model: Any, work: Work) -> TrainingResult:
    work.processes.connect(work.hardware, (work.recipe.training.model_extra or {}).get("ddp_timeout"))
    marks = _small_weights(model)
    trainer, progress = build_trainer(model, work)
    report = ProgressReport(f"training {work.recipe.method}", trainer)
    work.stop.before_leaving = report.close
    if work.processes.is_main:
        _watch(trainer, report, work)
    if work.checkpoint is None and work.data.validation:
        progress.base_perplexity = _finite(trainer.evaluate()["eval_perplexity"])
    try:
        trainer.run(work.checkpoint)
        seconds = trainer.train_seconds
        report.close()
        trainer.weights.unite()
        if work.processes.is_main:
            _check_learnt(model, work.recipe, marks)
        after = _final_evaluation(trainer) if work.data.validation else {}
    finally:
        report.close()
        trainer.finish_checkpoints()
        work.stop.before_leaving = lambda: None  # it would hold the trainer, and that one the model
    return TrainingResult(
        train_tokens=progress.train_tokens,
        train_seconds=seconds,
        tokens_per_second=progress.train_tokens / progress.step_seconds,
        peak_memory_bytes=int(
            work.processes.largest(max(progress.peak_memory_bytes, peak_memory_bytes(work.hardware)))[0]
        ),
        train_loss=next((log["loss"] for log in reversed(trainer.state.log_history) if "loss" in log), None),
        base_perplexity=progress.base_perplexity,
        eval_loss=after.get("eval_loss"),
        perplexity=_finite(after.get("eval_perplexity")),
        skipped_steps=progress.skipped_steps,
        checkpoints=progress.checkpoints,
        checkpoint_seconds=progress.checkpoint_seconds,
    )


def build_trainer(model: Any, work: Work) -> tuple[TokenTrainer, Progress]:
    """The Trainer, and the progress that it counts on, which begins at nothing or at the checkpoint's."""
    recipe, data = work.recipe, work.data
    progress = Progress(work.run_id) if work.checkpoint is None else Progress.read(work.checkpoint)
    conduct = Conduct(
        folder=work.folder,
        progress=progress,
        keep=recipe.training.save_total_limit,
        stop=work.stop,
        on_nonfinite=recipe.on_nonfinite,
        places=data.train.places,
        check_inputs=work.check_inputs,
        warn=work.warn,
        advise=lambda trainer, inputs: shortage(trainer, inputs, recipe, work.hardware),
        processes=work.processes,
        adopt=work.adopt,
    )
    arguments = (recipe, work.hardware, work.precision, work.folder.checkpoints, work.processes.count)
    with _tracking_in(work.folder):
        trainer = TokenTrainer(
            conduct,
            Shards(model, work.processes, work.hardware) if work.is_sharded else Weights(model),
            args=training_arguments(*arguments),
            train_dataset=data.train.dataset,
            eval_dataset=data.validation.dataset if data.validation else None,
            data_collator=Collator(
                work.pad_token_id,
                flat=model.config._attn_implementation == _FLASH,
                bounds=takes_bounds(model),
            ),
        )
    trainer.remove_callback(PrinterCallback)  # it prints each log as a dictionary
    return trainer, progress


def _watch(trainer: TokenTrainer, report: ProgressReport, work: Work) -> None:
    """Write down and tell what happens.

    The metrics begin where the run begins: lines that were written after a checkpoint will be written again.
    """
    for callback in (MetricsFile(work.folder.metrics, trainer), HealthWatch(work.warn), report):
        trainer.add_callback(callback)
    metrics = work.folder.metrics
    kept = work.checkpoint.path / metrics.name if work.checkpoint else None
    write_text(metrics, kept.read_text(encoding="utf-8") if kept else "")


@contextlib.contextmanager
def _tracking_in(folder: RunFolder) -> Iterator[None]:
    """Let TensorBoard's files stand in the run folder, unless the environment says where; it is asked once."""
    name = "TENSORBOARD_LOGGING_DIR"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(folder.tensorboard)
    try:
        yield
    finally:
        del os.environ[name]


def _final_evaluation(trainer: TokenTrainer) -> dict[str, float]:
    """The numbers of the weights as they are now: those of the last evaluation, if nothing has changed since."""
    newest: dict[str, float] = next((log for log in reversed(trainer.state.log_history) if "eval_loss" in log), {})
    if newest.get("step") == trainer.state.global_step and not trainer.args.load_best_model_at_end:
        return newest
    with trainer.saving_steps():
        evaluated: dict[str, float] = trainer.evaluate()
    return evaluated


def _finite(value: float | None) -> float | None:
    """A perplexity, or None for one that is beyond the largest float, which JSON has not."""
    return value if value is not None and math.isfinite(value) else None


def _small_weights(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the trained weights that are vectors, which are few: enough to see whether training moved anything."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.dim() == 1
    }


def _check_learnt(model: Any, recipe: Recipe, before: dict[str, torch.Tensor]) -> None:
    """See that the trained weights are numbers, and are not those that training started from."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    broken = next((name for name, parameter in trained.items() if not bool(torch.isfinite(parameter).all())), None)
    if broken:
        raise RunError(
            f"{broken} holds values that are not finite.", where="training", remedy="Lower training.learning_rate."
        )
    moved = (
        adapter_has_effect(model)
        if recipe.trains_adapter
        else any(not torch.equal(trained[name], weights) for name, weights in before.items())
    )
    if not moved:
        raise RunError(
            "no weight has moved: the result would be the untouched base.",
            where="training",
            remedy="Check training.learning_rate, warmup_steps and the number of steps.",
        )
