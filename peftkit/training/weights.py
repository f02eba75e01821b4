"""The weights of a model that is trained, as the Trainer needs them and as they are saved: whole, or sharded.

When sharded, each process holds a part of each weight, of its gradient and of the optimizer's state. Layers are
gathered one at a time, while they compute, by torch's `fully_shard` (FSDP2; Zhao et al. 2023), which keeps the modules'
classes and names. accelerate's FSDP plugin would not do: between CPUs it is silently ignored, and each process then
holds the whole model.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from peftkit.errors import BaseError, FieldError, RunError
from peftkit.models.attach import inner_model, load_adapter
from peftkit.models.base import LocatedBase
from peftkit.models.loss import LABEL_LOSSES, label_losses
from peftkit.training.processes import Processes

__all__ = ["Shards", "Weights", "check_types", "load_optimizer_state", "whole_tensor"]

_MMAP_THRESHOLD = -3  # malloc.h


class Weights:
    """The weights of a model that each process holds whole."""

    are_sharded = False

    def __init__(self, model: Any) -> None:
        self.model = model
        """What the Trainer trains."""

    def spread(self) -> None:
        """Keep this process's part; call it once, when nothing changes the modules any more."""

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Any]:
        """The model to save, which in the main process has every trained weight; all processes enter it together."""
        yield self.model

    def unite(self) -> None:
        """Put every weight back into the model that was given, in the main process; training is over."""

    def load(self, folder: Path) -> None:
        """Load the weights of a checkpoint.

        Raises:
            RunError: it does not hold every weight.
        """
        _load_weights(self.model, folder)

    def state_of(self, optimizer: Any) -> dict[str, Any]:
        """The whole state of an optimizer, in the main process; all of them have to ask for it together."""
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def load_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Restore an optimizer from a whole state."""
        load_optimizer_state(optimizer, state)


class Shards(Weights):
    """The weights of a model of which each process holds a part.

    The original model keeps its modules and loses its weights. In the main process it has them again while a
    checkpoint is saved, and after training.
    """

    are_sharded = True

    def __init__(self, whole: Any, processes: Processes, device: str) -> None:
        """Prepare to shard the weights of `whole`, which is on the CPU, onto devices of a kind, `cpu` or `cuda`.

        The process group is open.
        """
        super().__init__(deepcopy(whole, {id(weight): weight for weight in whole.parameters()}))  # not the weights
        self._whole = whole
        self._is_main = processes.is_main
        self._mesh = init_device_mesh(device, (processes.count,))

    def spread(self) -> None:
        """Keep this process's part of the weights, on its device."""
        _give_back_freed_memory()
        setattr(self.model, LABEL_LOSSES, label_losses(self.model))  # computed while the weights are whole
        inner = inner_model(self.model)
        kinds = set(inner._no_split_modules or ())
        layers = [module for module in inner.modules() if type(module).__name__ in kinds]
        for module in (*layers, self.model):  # weights outside the layers are gathered with the model
            given = [weight for weight in module.parameters() if not isinstance(weight, DTensor)]
            # no weight is whole between two passes, so that none is taken for a shard
            fully_shard(module, mesh=self._mesh, reshard_after_forward=True)
            _empty(given)
        register_fsdp_forward_method(self.model, LABEL_LOSSES)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Any]:
        """The whole model, with every trained weight in the main process."""
        self._gather(only_trained=True)
        try:
            yield self._whole
        finally:
            _empty(self._whole.parameters())

    def unite(self) -> None:
        """Put every weight back into the whole model, in the main process."""
        self._gather(only_trained=False)

    @torch.no_grad()
    def _gather(self, *, only_trained: bool) -> None:
        for weight, shard in self._pairs():
            if shard.requires_grad or not only_trained:
                found = self._on_main(shard)
                if found is not None:
                    weight.data = found

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Load this process's part of the weights of a checkpoint, which each process reads."""
        trained = [pair for pair in self._pairs() if pair[1].requires_grad]
        for weight, shard in trained:
            weight.data = torch.empty(shard.shape, dtype=shard.dtype)
        _load_weights(self._whole, folder)
        for weight, shard in trained:
            shard.to_local().copy_(_part_of(weight.data, shard).to_local())
        _empty(weight for weight, _ in trained)

    def state_of(self, optimizer: Any) -> dict[str, Any]:
        """The whole state of an optimizer, in the main process."""
        state = optimizer.state_dict()
        whole = {
            number: {name: self._on_main(value) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        return {**state, "state": whole}

    def load_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Load this process's part of a whole state into an optimizer."""
        shards = [shard for group in optimizer.param_groups for shard in group["params"]]
        parts = {
            number: {name: _part_of(value, shards[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": parts})

    def _pairs(self) -> list[tuple[torch.Tensor, Any]]:
        """Each weight of the whole model with its shard."""
        whole = dict(self._whole.named_parameters())
        return [(whole[name], shard) for name, shard in self.model.named_parameters()]

    def _on_main(self, value: Any) -> Any:
        """The whole tensor on the CPU of the main process; None in the others."""
        if not isinstance(value, DTensor):
            return value
        tensor = whole_tensor(value.detach())
        return tensor.cpu() if self._is_main else None


def _give_back_freed_memory() -> None:
    """Make the C library return a large tensor's memory once it is freed, which glibc otherwise keeps on its heap.

    Layers of a GPT-2 of 57 million weights come and go: with it a process had 1.1 GB at most, without it 1.7.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)


def check_types(model: Any) -> None:
    """Check that a model's trained weights can be sharded.

    Raises:
        FieldError: they have several dtypes.
    """
    types = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters() if weight.requires_grad})
    if len(types) > 1:
        what = f"shards trained weights of one number type, and these are {' and '.join(types)}."
        raise FieldError("training.fsdp", what, remedy="Set base.dtype: float32.")


def whole_tensor(tensor: Any) -> Any:
    """The whole of a sharded tensor, in each process; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _load_weights(model: Any, folder: Path) -> None:
    """Load the weights of a checkpoint into the model that wrote it. Nothing is opened but safetensors.

    Files may name and split weights in another way than the model does, so Transformers opens the checkpoint of a whole
    model as it opens any other.

    Raises:
        RunError: its weights are not those of the model.
    """
    if hasattr(model, "peft_config"):
        strange = load_adapter(model, folder)
        what = f"does not hold the adapter's {strange[0]} as it was saved." if strange else None
    else:
        what = _load_model(model, LocatedBase(str(folder), folder, None))
    if what:
        raise RunError(what, where=str(folder), remedy="Remove it, and resume the run from the checkpoint before it.")


def _load_model(model: Any, saved: LocatedBase) -> str | None:
    """Load the weights of a whole model that was saved; what is wrong with them, if anything is."""
    held = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters()}
    try:
        found = saved.load(saved.config(), held.pop() if len(held) == 1 else "float32", every_tensor=True).state_dict()
    except BaseError as error:
        return error.what
    own = model.state_dict()
    names = {*own} ^ {*found} | {name for name in {*own} & {*found} if own[name].shape != found[name].shape}
    if names:
        return f"has no fitting weights for {min(names)}."
    model.load_state_dict(found)
    return None


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Restore an optimizer, or what Accelerate has wrapped around it, from a state, its paged buffers in pages."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if not getattr(inner, "is_paged", False):
        optimizer.load_state_dict(state)
        return
    inner.load_state_dict(state, move_to_device=False)  # all of it together may be more than the GPU has room for
    for group_number, group in enumerate(inner.param_groups):
        for number, parameter in enumerate(group["params"]):
            if parameter in inner.state:
                _place(inner, group, parameter, (group_number, number))


@torch.no_grad()
def _place(optimizer: Any, group: dict[str, Any], parameter: Any, place: tuple[int, int]) -> None:
    """Put the saved state of a parameter where a new optimizer has it: into pages, or on the device."""
    saved = optimizer.state.pop(parameter)
    optimizer.init_state(group, parameter, *place)
    buffers = optimizer.state[parameter]
    for name, value in saved.items():
        if getattr(buffers.get(name), "is_paged", False):
            buffers[name].copy_(value)
        else:
            buffers[name] = value.to(parameter.device) if isinstance(value, torch.Tensor) else value


def _part_of(value: Any, shard: Any) -> Any:
    """This process's part of a tensor that is shaped as a weight; anything else is the same in all processes."""
    if not isinstance(value, torch.Tensor) or value.shape != shard.shape:
        return value
    return distribute_tensor(value, shard.device_mesh, shard.placements, src_data_rank=None)


def _empty(weights: Iterable[torch.Tensor]) -> None:
    """Free the memory of weights that others refer to."""
    for weight in weights:
        weight.data = torch.empty(0, dtype=weight.dtype)
