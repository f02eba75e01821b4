"""IA3 (Liu et al. 2022): for each module, a vector that scales its outputs or, in feedforward blocks, inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftkit.errors import FieldError, TargetError
from peftkit.models.methods import Floats, Overlap, Size, TokenRows, TrainingMethod, Update
from peftkit.recipe.hyperparameters import Ia3

__all__ = ["METHOD", "Scales"]

_PART = "ia3_l"


@dataclass(frozen=True)
class Scales(Update):
    """A module's vector, which the rows of its weight [out, in] are multiplied by, or the columns."""

    scales: Floats
    """[out], or [in] where it scales inputs."""

    of_inputs: bool

    @property
    def beyond_product(self) -> str | None:
        """It is none."""
        return "IA3's vectors, which scale weights"

    @property
    def untouched(self) -> bool:
        """Whether every number is one, as it began."""
        return bool((self.scales == 1).all())

    def adapted(self, weight: Floats, *, turned: bool = False) -> Floats:
        """The weight with its rows scaled, or its columns."""
        scaled: Floats = weight * (self.scales if self.of_inputs != turned else self.scales[:, None])
        return scaled

    def adapted_bias(self, bias: Floats) -> Floats | None:
        """Outputs are scaled with what the bias adds to them, and inputs before it is added."""
        return None if self.of_inputs else bias * self.scales

    def size(self, weight: Floats | None) -> Size:
        """Nothing is known of it without the weight, and it has no low rank."""
        if weight is None:
            return Size(None, None, None, None)
        change = self.adapted(weight) - weight
        return Size(None, float(np.linalg.norm(change)), float(np.abs(change).max()), None)

    def overlap(self, other: Update) -> Overlap | None:
        """The cosine of the angle between what the vectors are beside ones."""
        if not isinstance(other, Scales) or self.of_inputs != other.of_inputs:
            return None
        if self.scales.shape != other.scales.shape:
            return None
        one, two = self.scales - 1, other.scales - 1
        sizes = float(np.linalg.norm(one) * np.linalg.norm(two))
        return Overlap(float(one @ two) / sizes if sizes else None, None, None)


class _Ia3(TrainingMethod):
    name = "IA3"
    adapter = "an IA3 adapter"
    tag = "ia3"
    peft_type = "IA3"
    parts = (_PART,)
    beginning = "its factors are all one"
    strength = "ia3.target_modules"
    smaller = "Use a smaller base."

    def targets(self, structure: Any, settings: Ia3) -> list[str]:
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        from peftkit.models.attach import resolve_targets

        usual = ("k_proj", "v_proj", "down_proj")
        found = resolve_targets(structure, settings.target_modules, KNOWN, usual, "ia3.target_modules")
        _feedforward(structure.config.model_type, found, settings.feedforward_modules)
        return found

    def attach(
        self, model: Any, settings: Ia3, targets: list[str], base_folder: Path, rows: TokenRows | None = None
    ) -> Any:
        del rows
        from peft import IA3Config

        from peftkit.models.attach import adapted

        feedforward = _feedforward(model.config.model_type, targets, settings.feedforward_modules)
        own = settings.modules_to_save
        return adapted(model, IA3Config, targets, base_folder, feedforward_modules=feedforward, modules_to_save=own)

    def has_effect(self, model: Any, before: Mapping[str, Any]) -> bool:
        """Whether any factor is no longer one."""
        del before
        vectors = [weight for name, weight in model.named_parameters() if _PART in name]
        return any(bool((weight != 1).any()) for weight in vectors)

    def damaged(self, config: Mapping[str, Any]) -> list[str]:
        found = config.get("feedforward_modules")
        names = isinstance(found, list) and all(isinstance(name, str) for name in found)
        return [] if names or isinstance(found, str) else ["feedforward_modules"]

    def updates(
        self, folder: Path, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Floats]]
    ) -> dict[str, Update]:
        """A vector of outputs is a column in the file, and one of inputs a row."""
        del config
        updates: dict[str, Update] = {}
        for module, tensors in parts.items():
            vector = tensors[_PART]
            if vector.ndim != 2 or 1 not in vector.shape:
                what = f"{module} has a tensor of shape {list(vector.shape)}, which is no vector."
                remedy = "It was edited; copy or train the adapter again."
                raise TargetError(what, where=str(folder), remedy=remedy)
            updates[module] = Scales(vector.reshape(-1), of_inputs=vector.shape[0] == 1)
        return updates


def _feedforward(kind: str, targets: list[str], wanted: str | list[str]) -> list[str]:
    """Those of the targets whose inputs are scaled.

    Raises:
        FieldError: a name is none of a target.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as KNOWN

    from peftkit.models.attach import matches

    if wanted == "auto":
        return [name for name in targets if any(matches(name, end) for end in KNOWN.get(kind, ["down_proj"]))]
    stray = next((end for end in wanted if not any(matches(name, end) for name in targets)), None)
    if stray is not None:
        what = f"{stray!r} is none of the modules in ia3.target_modules."
        raise FieldError("ia3.feedforward_modules", what, remedy="Add it there, or remove it here.")
    return [name for name in targets if any(matches(name, end) for end in wanted)]


METHOD = _Ia3()
