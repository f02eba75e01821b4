"""Whether the weights of a run are spread over its processes (FSDP), and what has to be so for that."""

from __future__ import annotations

from typing import Any

from peftkit import console
from peftkit.errors import FieldError
from peftkit.planning.precision import ChosenPrecision
from peftkit.recipe.schema import Recipe

__all__ = ["check_sharding", "is_sharded"]

_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop", "sgd")
"""Those that change each number by itself: what they do to a part of a weight is what they do to the whole."""


def is_sharded(recipe: Recipe, processes: int) -> bool:
    """Whether each process holds a part of the weights; one alone holds them whole, whatever the recipe says."""
    return recipe.training.fsdp and processes > 1


def check_sharding(recipe: Recipe, processes: int, precision: ChosenPrecision) -> None:
    """See that what a recipe says can be done with parts of the weights, if they are to be spread.

    Raises:
        FieldError: it cannot.
    """
    if not is_sharded(recipe, processes):
        if recipe.training.fsdp:
            console.info("training.fsdp has no effect on one process: see --nproc.")
        return
    training = recipe.training
    extras: dict[str, Any] = training.model_extra or {}
    if recipe.method == "qlora":
        what = "cannot shard the quantised weights of method: qlora."
        raise FieldError("training.fsdp", what, remedy="Set it to false for qlora, or use method: lora.")
    if precision == "fp16":
        what = "cannot be used with fp16, whose gradients would be scaled for each part by itself."
        raise FieldError("training.fsdp", what, remedy="Set precision: bf16 or fp32.")
    if training.optim not in _OPTIMIZERS:
        what = f"{training.optim} does to a part of a weight something else than to the whole, or has no kernel for it."
        raise FieldError("training.optim", what, remedy=f"With fsdp, use one of {', '.join(_OPTIMIZERS)}.")
    if extras.get("torch_compile"):
        what = "has not been seen to give right results with sharded weights."
        raise FieldError("training.torch_compile", what, remedy="Remove it, or set fsdp: false.")
