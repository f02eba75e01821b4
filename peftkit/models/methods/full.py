"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit.models.methods import TrainingMethod

__all__ = ["METHOD"]


class _Full(TrainingMethod):
    name = "full fine-tuning"

    def attach(self, model: Any, settings: Any, targets: list[str], base_folder: Path) -> Any:
        del settings, targets, base_folder
        return model

    def state(self, model: Any) -> dict[str, Any]:
        """Copies of the vectors among the weights, which are few: enough to see whether training moved anything."""
        return {
            name: weight.detach().clone()
            for name, weight in model.named_parameters()
            if weight.requires_grad and weight.dim() == 1
        }

    def has_effect(self, model: Any, before: Mapping[str, Any]) -> bool:
        import torch

        trained = dict(model.named_parameters())
        return any(not torch.equal(trained[name], weights) for name, weights in before.items())


METHOD = _Full()
