"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit.models.methods import TokenRows, TrainingMethod

__all__ = ["METHOD"]

_NUMBERS = 4096


class _Full(TrainingMethod):
    name = "full fine-tuning"

    def attach(
        self, model: Any, settings: Any, targets: list[str], base_folder: Path, rows: TokenRows | None = None
    ) -> Any:
        del settings, targets, base_folder, rows
        return model

    def state(self, model: Any) -> dict[str, Any]:
        """Copies of the first numbers of each weight: enough to see whether training moved anything.

        Not of vectors alone, as some architectures have neither biases nor weights in their norms.
        """
        return {name: _first(weight).clone() for name, weight in model.named_parameters() if weight.requires_grad}

    def has_effect(self, model: Any, before: Mapping[str, Any]) -> bool:
        import torch

        trained = dict(model.named_parameters())
        return any(not torch.equal(_first(trained[name]), numbers) for name, numbers in before.items())


def _first(weight: Any) -> Any:
    return weight.detach().flatten()[:_NUMBERS]


METHOD = _Full()
