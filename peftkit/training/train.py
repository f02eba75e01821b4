"""Train a model on prepared data, and check that something was learnt."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from peftkit.data.collator import Collator
from peftkit.errors import MemoryRunError, RunError
from peftkit.models.attach import count_parameters, inner_model
from peftkit.models.attention import takes_bounds
from peftkit.models.kernels import use_fast_kernels
from peftkit.models.methods import TrainingMethod, method_named
from peftkit.models.start import padding_id
from peftkit.planning.decisions import Attention
from peftkit.runs.folder import Checkpoint, RunFolder
from peftkit.runs.manifest import RunMetrics
from peftkit.storage import write_text
from peftkit.training.arguments import products_as_before, training_arguments
from peftkit.training.memory import peak_memory_bytes, reset_peak_memory, within_memory
from peftkit.training.prepare import Run
from peftkit.training.trainer import TokenTrainer
from peftkit.training.watching import HealthWatch, MetricsFile, ProgressReport, finite
from peftkit.training.weights import Shards, Weights

__all__ = ["build_trainer", "train", "train_from"]

_FLASH: Attention = "flash_attention_2"  # it tells documents apart by their positions in a single row only


def train(model: Any, run: Run) -> RunMetrics:
    """Train `model` in place through the Trainer, measuring the validation data before and after.

    Returns:
        What was measured, over all processes and all starts of the run.

    Raises:
        RunError: a loss or a weight is not finite, a step does not fit into memory, or training changed nothing.
        Stopped: a signal came; the step is saved.
    """
    set_seed(run.recipe.training.seed)
    reset_peak_memory(run.hardware)
    use_fast_kernels(model, run.hardware)
    with products_as_before(), _own_forward(model):
        run.processes.connect(run.hardware, (run.recipe.training.model_extra or {}).get("ddp_timeout"))
        trainable, total = count_parameters(model)
        method = method_named(run.recipe.method)
        before = method.state(model)
        trainer = build_trainer(model, run)
        progress = trainer.progress
        report = ProgressReport(f"training {run.recipe.method}", trainer)
        if run.processes.is_main:
            _watch(trainer, report, run)
        if run.checkpoint is None and run.data.validation:
            progress.base_perplexity = finite(trainer.evaluate()["eval_perplexity"])
        try:
            train_from(trainer, run.checkpoint, before_leaving=report.close)
            seconds = trainer.train_seconds
            report.close()
            trainer.weights.unite()
            if run.processes.is_main:
                _check_learnt(model, method, before)
            after = _final_evaluation(trainer) if run.data.validation else {}
        finally:
            report.close()
            trainer.finish_checkpoints()
        peak = max(progress.peak_memory_bytes, peak_memory_bytes(run.hardware))
        return RunMetrics(
            trainable_parameters=trainable,
            total_parameters=total,
            train_tokens=progress.train_tokens,
            train_seconds=seconds,
            tokens_per_second=progress.train_tokens / progress.step_seconds,
            peak_memory_bytes=int(run.processes.largest(peak)),
            train_loss=next((log["loss"] for log in reversed(trainer.state.log_history) if "loss" in log), None),
            base_perplexity=progress.base_perplexity,
            eval_loss=after.get("eval_loss"),
            perplexity=finite(after.get("eval_perplexity")),
            skipped_steps=progress.skipped_steps,
            checkpoints=progress.checkpoints,
            checkpoint_seconds=progress.checkpoint_seconds,
        )


@contextlib.contextmanager
def _own_forward(model: Any) -> Iterator[None]:
    """Restore a model's own `forward` in the end: training has put autocast and a loss in its place."""
    modules = list(dict.fromkeys([model, inner_model(model)]))
    before = [vars(module).get("forward") for module in modules]
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            for name in ("forward", "_original_forward"):  # the second is Accelerate's
                vars(module).pop(name, None)
            if forward is not None:
                module.forward = forward


def train_from(
    trainer: TokenTrainer, checkpoint: Checkpoint | None, *, before_leaving: Callable[[], None] = lambda: None
) -> None:
    """Train from the start, or resume from a checkpoint that verifies, even where nothing is left to train.

    Where a second signal ends the process at once, `before_leaving` is called first.

    Raises:
        Stopped: a signal came; the step is saved.
        MemoryRunError: memory was short; the steps before are saved where they are whole.
    """

    def compute() -> None:
        with trainer.run.stop.between_steps(before_leaving), _saving_steps(trainer):
            if checkpoint is None or checkpoint.step < trainer.last_step():
                trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
            else:
                trainer.load_end(checkpoint)

    trainer.begin()
    within_memory(trainer, compute, None)  # a pass or an evaluation that does not fit says so itself
    trainer.finish_checkpoint()
    stopping = trainer.run.told_to_stop()
    if stopping is not None:  # it came while the last step was being finished
        if not trainer.args.load_best_model_at_end and not trainer.is_saved():
            trainer.save_step()
        trainer.stop(stopping)


@contextlib.contextmanager
def _saving_steps(trainer: TokenTrainer) -> Iterator[None]:
    """Save the steps before what does not fit into memory within the block, if memory and disk allow that much.

    An evaluation that did not fit would not be made again after them; where it decides which checkpoint is the
    best, they are not saved.
    """
    try:
        yield
    except MemoryRunError as error:
        error.moved = trainer.state.global_step > 0
        decides = error.batch == "evaluation" and trainer.args.load_best_model_at_end
        if not (trainer.processes.are_many or decides):  # other processes are in the middle of the step
            with contextlib.suppress(RuntimeError, MemoryError, OSError, MemoryRunError):
                if trainer.state.global_step and not trainer.is_saved():
                    trainer.save_step()
                    trainer.finish_checkpoint()
        raise


def build_trainer(model: Any, run: Run) -> TokenTrainer:
    """The Trainer of a run, whose progress is none or the checkpoint's."""
    arguments = (run.recipe, run.hardware, run.precision, run.folder.checkpoints, run.processes.count)
    with _tracking_in(run.folder):
        trainer = TokenTrainer(
            run,
            Shards(model, run.processes, run.hardware.device) if run.is_sharded else Weights(model),
            args=training_arguments(*arguments),
            train_dataset=run.data.train.dataset,
            eval_dataset=run.data.validation.dataset if run.data.validation else None,
            data_collator=Collator(
                padding_id(run.start.tokenizer),
                flat=model.config._attn_implementation == _FLASH,
                bounds=takes_bounds(model),
            ),
        )
    trainer.remove_callback(PrinterCallback)  # it prints each log as a dictionary
    return trainer


def _watch(trainer: TokenTrainer, report: ProgressReport, run: Run) -> None:
    """Record and print what happens; lines of metrics after the checkpoint are dropped, as they are written again."""
    for callback in (MetricsFile(run.folder.metrics, trainer), HealthWatch(run.warn), report):
        trainer.add_callback(callback)
    metrics = run.folder.metrics
    kept = run.checkpoint.path / metrics.name if run.checkpoint else None
    write_text(metrics, kept.read_text(encoding="utf-8") if kept else "")


@contextlib.contextmanager
def _tracking_in(folder: RunFolder) -> Iterator[None]:
    """Within the block, point TensorBoard to the run folder, unless the environment names another place."""
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
    """The metrics of the weights as they are now: those of the last evaluation, if nothing has changed since."""
    newest: dict[str, float] = next((log for log in reversed(trainer.state.log_history) if "eval_loss" in log), {})
    if newest.get("step") == trainer.state.global_step and not trainer.args.load_best_model_at_end:
        return newest
    with _saving_steps(trainer):
        evaluated: dict[str, float] = trainer.evaluate()
    return evaluated


def _check_learnt(model: Any, method: TrainingMethod, before: dict[str, Any]) -> None:
    """Check that the trained weights are finite, and not those that training started from."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    broken = next((name for name, parameter in trained.items() if not bool(torch.isfinite(parameter).all())), None)
    if broken:
        what, remedy = f"{broken} holds values that are not finite.", "Lower training.learning_rate."
        raise RunError(what, where="training", remedy=remedy)
    if not method.has_effect(model, before):
        what = "no weight has moved: the result would be the untouched base."
        remedy = "Check training.learning_rate, warmup_steps and the number of steps."
        raise RunError(what, where="training", remedy=remedy)
