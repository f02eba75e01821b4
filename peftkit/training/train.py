"""Train a model on prepared data, and see that something was learnt."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from peftkit.data.collator import Collator
from peftkit.data.prepare import RunData
from peftkit.errors import RunError
from peftkit.models.attach import adapter_has_effect
from peftkit.models.kernels import use_fast_kernels
from peftkit.planning.hardware import Attention, ChosenPrecision, Hardware
from peftkit.recipe.schema import Recipe
from peftkit.runs.folder import RunFolder
from peftkit.training.arguments import training_arguments
from peftkit.training.memory import peak_memory_bytes, reset_peak_memory
from peftkit.training.progress import ProgressReport
from peftkit.training.records import MetricsFile
from peftkit.training.trainer import TokenTrainer

__all__ = ["TrainingResult", "train"]

_FLASH: Attention = "flash_attention_2"  # it tells documents apart by their positions in a single row only


@dataclass(frozen=True)
class TrainingResult:
    """What training measured."""

    steps: int
    train_tokens: int
    train_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    train_loss: float | None
    base_perplexity: float | None
    eval_loss: float | None
    perplexity: float | None


def train(
    model: Any,
    pad_token_id: int,
    data: RunData,
    recipe: Recipe,
    folder: RunFolder,
    hardware: Hardware,
    precision: ChosenPrecision,
) -> TrainingResult:
    """Train `model` in place through the Trainer, measuring the validation data before and after.

    Raises:
        RunError: a loss or a weight is not finite, or training changed nothing.
    """
    set_seed(recipe.training.seed)
    use_fast_kernels(model, hardware)
    reset_peak_memory(hardware)
    trainer = TokenTrainer(
        model=model,
        args=training_arguments(recipe, hardware, precision, folder.checkpoints),
        train_dataset=data.train.dataset,
        eval_dataset=data.validation.dataset if data.validation else None,
        data_collator=Collator(pad_token_id, flat=model.config._attn_implementation == _FLASH),
    )
    progress = ProgressReport(f"training {recipe.method}", trainer)
    trainer.remove_callback(PrinterCallback)  # it prints each log as a dictionary
    trainer.add_callback(MetricsFile(folder.metrics, trainer))
    trainer.add_callback(progress)
    before = trainer.evaluate() if data.validation else {}
    marks = _small_weights(model)
    start = time.perf_counter()
    try:
        trainer.train()
    finally:
        progress.close()
    seconds = time.perf_counter() - start
    _check_learnt(model, recipe, marks)
    after = _final_evaluation(trainer) if data.validation else {}
    return TrainingResult(
        steps=trainer.state.global_step,
        train_tokens=trainer.train_tokens,
        train_seconds=seconds,
        tokens_per_second=trainer.train_tokens / trainer.step_seconds,
        peak_memory_bytes=peak_memory_bytes(hardware),
        train_loss=next((log["loss"] for log in reversed(trainer.state.log_history) if "loss" in log), None),
        base_perplexity=before.get("eval_perplexity"),
        eval_loss=after.get("eval_loss"),
        perplexity=after.get("eval_perplexity"),
    )


def _final_evaluation(trainer: TokenTrainer) -> dict[str, float]:
    """The numbers of the weights as they are now: those of the last evaluation, if nothing has changed since."""
    newest: dict[str, float] = next((log for log in reversed(trainer.state.log_history) if "eval_loss" in log), {})
    if newest.get("step") == trainer.state.global_step and not trainer.args.load_best_model_at_end:
        return newest
    evaluated: dict[str, float] = trainer.evaluate()
    return evaluated


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
