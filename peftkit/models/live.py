"""A model in memory that can be let go of, and what it held with it."""

from __future__ import annotations

import gc
from typing import Any

import torch

__all__ = ["LiveModel", "free_memory"]


class LiveModel:
    """The one lasting reference to a model: whoever works with it borrows it for as long as the work takes."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def model(self) -> Any:
        """The model.

        Raises:
            RuntimeError: it has been released.
        """
        if self._model is None:
            raise RuntimeError("the model has been released")
        return self._model

    def take(self, model: Any) -> None:
        """Hold another model."""
        self._model = model

    def release(self) -> None:
        """Give its memory back to the device."""
        self._model = None
        free_memory()


def free_memory() -> None:
    """Give back what nobody refers to any more: a Trainer and its optimizer are rings, which only a search finds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
