"""The recipe's hyperparameters as Transformers' `TrainingArguments`, the same for every method."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from peftkit.errors import FieldError
from peftkit.planning.decisions import (
    choose_checkpointing,
    choose_compilation,
    choose_optimizer,
    choose_pinned_memory,
    choose_workers,
)
from peftkit.planning.hardware import Hardware
from peftkit.planning.precision import ChosenPrecision, choose_tf32
from peftkit.recipe.hyperparameters import Training
from peftkit.recipe.schema import Recipe

__all__ = ["products_as_before", "training_arguments"]


def training_arguments(
    recipe: Recipe, hardware: Hardware, precision: ChosenPrecision, checkpoints: Path
) -> TrainingArguments:
    """Build the arguments from the recipe, with what peftkit decides itself.

    Raises:
        FieldError: Transformers refuses a value, alone or beside another.
    """
    chosen: dict[str, Any] = {
        "report_to": "none",
        **recipe.training.model_dump(),
        **_decided(recipe.training, hardware, precision),
        "output_dir": str(checkpoints),
        "run_name": recipe.name,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": hardware.device == "cpu",
        "remove_unused_columns": False,  # the collator hands out exactly what is needed
        "label_names": ["labels"],
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,  # it would show a NaN as a loss of 0
    }
    if recipe.data.validation is None:
        chosen["eval_strategy"] = "no"
    if chosen["warmup_steps"] >= 1:
        chosen["warmup_steps"] = int(chosen["warmup_steps"])
    try:
        return TrainingArguments(**chosen)
    except (ValueError, TypeError, ImportError) as error:
        line = str(error).strip().splitlines()[0]
        raise FieldError(
            "training", f"Transformers refuses it: {line}", remedy="Change or remove that field."
        ) from error


def _decided(training: Training, hardware: Hardware, precision: ChosenPrecision) -> dict[str, Any]:
    """The arguments that follow from the machine, where the recipe does not set them itself."""
    return {
        "optim": choose_optimizer(training, hardware).choice,
        "activation_checkpointing": choose_checkpointing(training).choice,
        "torch_compile": choose_compilation(training, hardware).choice,
        "dataloader_num_workers": choose_workers(training).choice,
        "dataloader_pin_memory": choose_pinned_memory(training, hardware).choice,
        "tf32": choose_tf32(training, hardware, precision).choice,
    }


@contextlib.contextmanager
def products_as_before() -> Iterator[None]:
    """Undo what `TrainingArguments` does about TF32: it acts on the whole process, and what follows is to be exact."""
    backends: Any = torch.backends
    before = backends.fp32_precision
    try:
        yield
    finally:
        backends.fp32_precision = before
