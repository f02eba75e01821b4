"""The recipe's hyperparameters as Transformers' `TrainingArguments`, the same for every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from peftkit.errors import FieldError
from peftkit.planning.hardware import ChosenPrecision, Hardware
from peftkit.recipe.schema import Recipe

__all__ = ["training_arguments"]


def training_arguments(
    recipe: Recipe, hardware: Hardware, precision: ChosenPrecision, checkpoints: Path
) -> TrainingArguments:
    """Build the arguments from the recipe, with what peftkit decides itself.

    Raises:
        FieldError: Transformers refuses a value, alone or beside another.
    """
    chosen: dict[str, Any] = {
        "report_to": "none",
        "dataloader_pin_memory": hardware.device == "cuda",
        **recipe.training.model_dump(),
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
