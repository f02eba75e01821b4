"""How several processes share a run: who is who, what each does of a step, and whether weights are sharded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

from peftkit import console
from peftkit.errors import FieldError, InputError

if TYPE_CHECKING:
    from peftkit.planning.decisions import ChosenPrecision
    from peftkit.planning.hardware import Hardware
    from peftkit.recipe.schema import Recipe

__all__ = ["Place", "Share", "check_machine", "check_recipe", "check_sharding", "is_follower", "is_sharded", "share_of"]

_WRAPPERS = {
    "ACCELERATE_USE_FSDP": "Launch with --multi_gpu instead of --use_fsdp, and set training.fsdp: true in the recipe.",
    "ACCELERATE_USE_DEEPSPEED": "Launch with --multi_gpu instead of --use_deepspeed.",
}
"""What accelerate's launcher sets when it is to change the model that is trained, and what to do instead."""

_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop", "sgd")
"""Those that change each number by itself: what they do to a part of a weight is what they do to the whole."""


@dataclass(frozen=True)
class Place:
    """Which of a run's processes one is: its number from 0 among those of all machines, and among those of its own."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The place that torchrun, or a launcher with the same variables, has assigned to this process.

        Raises:
            InputError: a variable is missing, or the launcher would shard the model by itself.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if int(environment.get("WORLD_SIZE", "1") or 1) <= 1:
            return cls()
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            what = f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(missing)} is not set."
            remedy = "Start the processes with --nproc or torchrun, or unset WORLD_SIZE."
            raise InputError(what, where="environment", remedy=remedy)
        for name, remedy in _WRAPPERS.items():
            if environment.get(name, "false").lower() in ("true", "1"):
                what = f"{name} is set, by which accelerate would shard the model in its own way."
                raise InputError(what, where="environment", remedy=remedy)
        return cls(*(int(environment.get(name, environment["WORLD_SIZE"])) for name in names))

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0


def is_follower(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started this process along with a main one, which prints for all."""
    return "LOCAL_RANK" in environment and environment.get("RANK", "0") != "0"


class Share(NamedTuple):
    """What one process does of each optimizer step: forward passes, each of so many sequences."""

    rows: int
    accumulation: int


def share_of(rows: int, accumulation: int, processes: int) -> Share:
    """The part of an optimizer step that each process takes, so that all of them together see what one would see.

    There are fewer passes where these can be shared; otherwise a pass has fewer rows, never more. `rows` and
    `accumulation` are the recipe's.

    Raises:
        FieldError: the sequences of a step cannot be shared equally.
    """
    together = rows * accumulation
    each, left = divmod(together, processes)
    if left:
        fitting = [str(count) for count in range(2, together + 1) if together % count == 0]
        what = f"an optimizer step sees {together} sequences, which {processes} processes cannot share."
        others = f", or use {', '.join(fitting)} processes" if fitting else ""
        remedy = f"Make it a multiple of {processes}{others}."
        raise FieldError("training.per_device_train_batch_size", what, remedy=remedy)
    most = next(size for size in range(min(rows, each), 0, -1) if each % size == 0)
    return Share(most, each // most)


def check_recipe(recipe: Recipe, processes: int) -> None:
    """Check that several processes can train by a recipe.

    Raises:
        FieldError: they cannot.
    """
    if processes == 1:
        return
    training = recipe.training
    share_of(training.per_device_train_batch_size, training.gradient_accumulation_steps, processes)
    if (training.model_extra or {}).get("train_sampling_strategy") == "batch_rebalance":
        what = "batch_rebalance makes other steps with every number of processes."
        remedy = "Use group_by_length, or data.packing: true."
        raise FieldError("training.train_sampling_strategy", what, remedy=remedy)


def check_machine(place: Place, hardware: Hardware) -> None:
    """Check that every process on a machine has a GPU of its own, where there are any.

    Raises:
        InputError: there are more processes.
    """
    if hardware.device == "cuda" and place.local_count > hardware.device_count:
        gpus = "one GPU" if hardware.device_count == 1 else f"{hardware.device_count} GPUs"
        what = f"{place.local_count} processes need a GPU each, but this machine has {gpus}."
        raise InputError(what, where="--nproc", remedy=f"Use at most {hardware.device_count}.")


def is_sharded(recipe: Recipe, processes: int) -> bool:
    """Whether each process holds a part of the weights; one alone holds them whole, whatever the recipe says."""
    return recipe.training.fsdp and processes > 1


def check_sharding(recipe: Recipe, processes: int, precision: ChosenPrecision) -> None:
    """Check that a recipe works with parts of the weights, if they are to be sharded.

    Raises:
        FieldError: it cannot.
    """
    if not is_sharded(recipe, processes):
        if recipe.training.fsdp:
            console.info("training.fsdp has no effect on one process: see --nproc.")
        return
    training = recipe.training
    if recipe.traits.quantizes:
        what = f"cannot shard the quantised weights of method: {recipe.method}."
        raise FieldError("training.fsdp", what, remedy="Set it to false for qlora, or use method: lora.")
    if precision == "fp16":
        what = "cannot be used with fp16, whose gradients would be scaled for each part by itself."
        raise FieldError("training.fsdp", what, remedy="Set precision: bf16 or fp32.")
    if training.optim not in _OPTIMIZERS:
        what = f"{training.optim} does to a part of a weight something else than to the whole, or has no kernel for it."
        raise FieldError("training.optim", what, remedy=f"With fsdp, use one of {', '.join(_OPTIMIZERS)}.")
    if (training.model_extra or {}).get("torch_compile"):
        what = "has not been seen to give right results with sharded weights."
        raise FieldError("training.torch_compile", what, remedy="Remove it, or set fsdp: false.")
