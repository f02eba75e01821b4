"""Train a model on prepared data, and see that something was learnt."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from peftkit import console
from peftkit.data.collator import Collator
from peftkit.data.prepare import RunData
from peftkit.errors import RunError
from peftkit.models.attach import adapter_has_effect
from peftkit.models.kernels import use_fast_kernels
from peftkit.planning.decisions import Attention
from peftkit.planning.hardware import Hardware
from peftkit.planning.precision import ChosenPrecision
from peftkit.recipe.schema import Recipe
from peftkit.runs.checkpoints import Checkpoint
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest
from peftkit.storage import write_text
from peftkit.training.arguments import products_as_before, training_arguments
from peftkit.training.checkpoint import Progress
from peftkit.training.conduct import Conduct
from peftkit.training.health import HealthWatch
from peftkit.training.memory import peak_memory_bytes, reset_peak_memory, shortage
from peftkit.training.progress import ProgressReport
from peftkit.training.records import MetricsFile
from peftkit.training.signals import StopRequest
from peftkit.training.trainer import TokenTrainer

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
    manifest: RunManifest
    stop: StopRequest
    check_inputs: Callable[[], None] = lambda: None
    checkpoint: Checkpoint | None = None
    """Where to go on; None to begin."""

    adopt: bool = False
    """Whether hyperparameters have changed since the checkpoint, and are to act."""

    def with_training(self, training: dict[str, Any]) -> Work:
        """The same with other values of some hyperparameters."""
        changed = self.recipe.training.model_copy(update=training)
        return replace(self, recipe=self.recipe.model_copy(update={"training": changed}))

    def warn(self, message: str) -> None:
        """Tell what may surprise, and write it down."""
        console.warning(message)
        self.manifest.warnings.append(message)


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
    trainer, progress = build_trainer(model, work)
    report = ProgressReport(f"training {work.recipe.method}", trainer)
    trainer.add_callback(MetricsFile(work.folder.metrics, trainer))
    trainer.add_callback(HealthWatch(work.warn))
    trainer.add_callback(report)
    work.stop.before_leaving = report.close
    _restore_metrics(work)
    if work.checkpoint is None and work.data.validation:
        progress.base_perplexity = _finite(trainer.evaluate()["eval_perplexity"])
    marks = _small_weights(model)
    try:
        trainer.run(work.checkpoint)
        seconds = trainer.train_seconds
    finally:
        report.close()
        trainer.finish_checkpoints()
    _check_learnt(model, work.recipe, marks)
    after = _final_evaluation(trainer) if work.data.validation else {}
    return TrainingResult(
        train_tokens=progress.train_tokens,
        train_seconds=seconds,
        tokens_per_second=progress.train_tokens / progress.step_seconds,
        peak_memory_bytes=max(progress.peak_memory_bytes, peak_memory_bytes(work.hardware)),
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
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(work.folder.tensorboard))
    progress = Progress(work.manifest.run_id) if work.checkpoint is None else Progress.read(work.checkpoint)
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
        adopt=work.adopt,
    )
    trainer = TokenTrainer(
        conduct,
        model=model,
        args=training_arguments(recipe, work.hardware, work.precision, work.folder.checkpoints),
        train_dataset=data.train.dataset,
        eval_dataset=data.validation.dataset if data.validation else None,
        data_collator=Collator(work.pad_token_id, flat=model.config._attn_implementation == _FLASH),
    )
    trainer.remove_callback(PrinterCallback)  # it prints each log as a dictionary
    return trainer, progress


def _restore_metrics(work: Work) -> None:
    """Begin the metrics where the run begins: lines that were written after a checkpoint will be written again."""
    metrics = work.folder.metrics
    kept = work.checkpoint.path / metrics.name if work.checkpoint else None
    write_text(metrics, kept.read_text(encoding="utf-8") if kept else "")


def _final_evaluation(trainer: TokenTrainer) -> dict[str, float]:
    """The numbers of the weights as they are now: those of the last evaluation, if nothing has changed since."""
    newest: dict[str, float] = next((log for log in reversed(trainer.state.log_history) if "eval_loss" in log), {})
    if newest.get("step") == trainer.state.global_step and not trainer.args.load_best_model_at_end:
        return newest
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
