"""The weights of a model that is trained, as the Trainer needs them and as they are saved: here, whole in each process.

`peftkit.training.sharded` has those of which each process holds a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from peftkit.errors import RunError
from peftkit.training.paged import load_optimizer_state

__all__ = ["Weights", "load_weights"]


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
