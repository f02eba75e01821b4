"""The recipe's hyperparameters as Transformers' `TrainingArguments`, the same for every method."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from peftkit.compatibility import spelled
from peftkit.errors import FieldError
from peftkit.planning.decisions import ChosenPrecision, decide
from peftkit.planning.hardware import Hardware
from peftkit.planning.processes import share_of
from peftkit.recipe.hyperparameters import Training
from peftkit.recipe.schema import Recipe
from peftkit.storage import read_json

__all__ = ["products_as_before", "training_arguments"]

_DECIDED = {
    "optim": "optimizer",
    "activation_checkpointing": "checkpointing",
    "torch_compile": "torch.compile",
    "dataloader_num_workers": "workers",
    "dataloader_pin_memory": "pinned memory",
    "tf32": "TF32",
}
"""The arguments that follow from the machine, where the recipe does not set them itself, and the decision of each."""

_PARENTS = ("backends", "backends.cudnn")
"""What others inherit their `fp32_precision` from: everything, and everything on CUDA."""

_CHILDREN = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
"""All others that have one. `mkldnn` itself has one that cannot be set: its setter sets the first parent's."""


def training_arguments(
    recipe: Recipe, hardware: Hardware, precision: ChosenPrecision, checkpoints: Path, processes: int = 1
) -> TrainingArguments:
    """Build the arguments from the recipe and from what peftkit decides itself.

    A recipe is written for one process. Of several, each takes its share of every optimizer step.

    Raises:
        FieldError: Transformers refuses a value, alone or with another.
    """
    batches = _batches(recipe.training, processes)
    decided: dict[str, Any] = {decision.name: decision.choice for decision in decide(hardware, recipe)}
    # a GPU copies batches from pinned memory while the host continues; otherwise the host would wait for each
    pinned = hardware.device == "cuda" and decided["pinned memory"]
    batches["accelerator_config"] = {"non_blocking": pinned, **batches["accelerator_config"]}
    chosen: dict[str, Any] = {
        "report_to": "none",
        "greater_is_better": False,  # of loss and perplexity; Transformers takes all but the loss for scores
        **recipe.training.model_dump(),
        **{argument: decided[name] for argument, name in _DECIDED.items()},
        "output_dir": str(checkpoints),
        "run_name": recipe.name,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": hardware.device == "cpu",
        "remove_unused_columns": False,  # the collator returns exactly what is needed
        "label_names": ["labels"],
        "disable_tqdm": True,
        "fsdp": None,  # peftkit shards the model itself, before the Trainer trains it
        "logging_nan_inf_filter": False,  # it would show a NaN as a loss of 0
        **batches,
    }
    if recipe.data.validation is None:
        chosen["eval_strategy"] = "no"
    if chosen["warmup_steps"] >= 1:
        chosen["warmup_steps"] = int(chosen["warmup_steps"])
    try:
        arguments = TrainingArguments(**spelled(chosen, TrainingArguments.__dataclass_fields__))
        arguments._n_gpu = min(arguments.n_gpu, 1)  # Trainer would train on all GPUs from one process: other steps
        return arguments
    except (ValueError, TypeError, ImportError) as error:
        what = f"Transformers refuses it: {str(error).strip().splitlines()[0]}"
        raise FieldError("training", what, remedy="Change or remove that field.") from error


def _batches(training: Training, processes: int) -> dict[str, Any]:
    """The recipe's `accelerator_config`, a dictionary or a JSON file, and how several processes share a step.

    They take the steps that one would take. The batch sizes are then those of all processes together; no process gets a
    row twice to make the shares equal. The order of the rows is drawn from the same seed everywhere.
    """
    extra: dict[str, Any] = training.model_extra or {}
    given: Any = extra.get("accelerator_config") or {}
    if isinstance(given, str):
        try:
            given = dict(read_json(Path(given)))
        except (OSError, ValueError, TypeError) as error:
            what, remedy = (
                f"{Path(given)} cannot be read as a JSON object: {error}",
                "Write its values into the recipe.",
            )
            raise FieldError("training.accelerator_config", what, remedy=remedy) from error
    if given.get("dispatch_batches"):
        what = "cannot be true: each process makes its own rows."
        raise FieldError("training.accelerator_config.dispatch_batches", what, remedy="Remove it.")
    config = {**given, "dispatch_batches": False}
    if processes == 1:
        return {"accelerator_config": config}
    share = share_of(training.per_device_train_batch_size, training.gradient_accumulation_steps, processes)
    data_seed = extra.get("data_seed")
    return {
        "accelerator_config": {**config, "split_batches": True, "even_batches": False},
        "per_device_train_batch_size": share.rows * processes,
        "gradient_accumulation_steps": share.accumulation,
        "per_device_eval_batch_size": training.per_device_eval_batch_size * processes,
        "log_level_replica": "error",  # the main process is as quiet by itself
        "data_seed": training.seed if data_seed is None else data_seed,
        "ddp_find_unused_parameters": extra.get("ddp_find_unused_parameters") or False,
    }


@contextlib.contextmanager
def products_as_before() -> Iterator[None]:
    """Restore the TF32 settings after training: they act on the whole process, and what follows is to be exact.

    `TrainingArguments` sets the precision of all backends. A compilation then sets that of CUDA's matmuls to what it
    inherits, so that it no longer follows the common setting; therefore every setting is restored. The older API
    (`torch.set_float32_matmul_precision`, `allow_tf32`) then agrees with it again.
    """
    before = _own_precisions()
    try:
        yield
    finally:
        _set_precisions(before)


def _own_precisions() -> dict[str, str]:
    """Each precision's own setting, of those that this torch has.

    One that is set to `none` reads as its parent's, so a parent is `none` while those below it are read.
    """
    found: dict[str, str] = {}
    for name in (*_PARENTS, *(f"backends.{child}" for child in _CHILDREN)):
        with contextlib.suppress(AttributeError):
            found[name] = attrgetter(f"{name}.fp32_precision")(torch)
        if name in _PARENTS:
            _set_precisions({name: "none"})
    _set_precisions(found)
    return found


def _set_precisions(precisions: dict[str, str]) -> None:
    for name, precision in precisions.items():
        attrgetter(name)(torch).fp32_precision = precision
