"""The weights of a model that is trained, as the Trainer needs them and as they are saved: here, whole in each process.

`peftkit.training.sharded` has those of which each process holds a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from peftkit.errors import RunError

__all__ = ["Weights", "load_optimizer_state", "load_weights"]


class Weights:
    """The weights of a model that each process holds whole."""

    are_sharded = False

    def __init__(self, model: Any) -> None:
        self.model = model
        """What the Trainer trains."""

    def spread(self) -> None:
        """Let each process keep its part; call it once, when nothing changes the modules any more."""

    @contextmanager
    def gathered(self) -> Iterator[Any]:
        """The model to save, which in the main process has every trained weight within the block.

        All processes have to enter it together.
        """
        yield self.model

    def unite(self) -> None:
        """Put every weight back into the model that was given, in the main process; training is over."""

    def load(self, folder: Path) -> None:
        """Take the weights of a checkpoint.

        Raises:
            RunError: it does not hold every weight.
        """
        load_weights(self.model, folder)

    def state_of(self, optimizer: Any) -> dict[str, Any]:
        """The whole state of an optimizer, in the main process; all of them have to ask for it together."""
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def load_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Let an optimizer go on from a whole state."""
        load_optimizer_state(optimizer, state)


def load_weights(model: Any, folder: Path) -> None:
    """Put the weights of a checkpoint into the model that wrote it. Nothing is opened but safetensors.

    Raises:
        RunError: it does not hold every weight.
    """
    if hasattr(model, "peft_config"):
        model.load_adapter(str(folder), model.active_adapters[0], is_trainable=True)
        return
    weights = {name: weight for path in folder.glob("model*.safetensors") for name, weight in load_file(path).items()}
    missing = set(model.load_state_dict(weights, strict=False).missing_keys) - set(model._tied_weights_keys or ())
    if missing:
        raise RunError(f"does not hold the weight {min(missing)}.", where=str(folder), remedy="Remove it, and go on.")


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Let an optimizer, or what Accelerate has wrapped around it, take a state, its paged buffers in pages."""
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
    """Put what was saved of a parameter where the optimizer puts it when it begins: into pages, or on the device."""
    saved = optimizer.state.pop(parameter)
    optimizer.init_state(group, parameter, *place)
    buffers = optimizer.state[parameter]
    for name, value in saved.items():
        if getattr(buffers.get(name), "is_paged", False):
            buffers[name].copy_(value)
        else:
            buffers[name] = value.to(parameter.device) if isinstance(value, torch.Tensor) else value
