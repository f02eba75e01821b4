"""What an adapter's tensors mean: for each module two small matrices whose product is added to a weight."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from peftkit.adapters.files import WEIGHTS_NAME, Adapter, Floats
from peftkit.errors import TargetError
from peftkit.recipe.names import LORA_BEYOND, LORA_INITS_BEYOND

__all__ = ["Doubles", "Factors", "Meaning", "folded", "kinds_of", "meaning_of", "part_of", "place_of"]

Doubles = npt.NDArray[np.float64]

_PREFIX = "base_model.model."
_PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_B.bias": "bias",
}


@dataclass(frozen=True)
class Factors:
    """A module's update, `scaling * b @ a`, in the orientation of a Linear's weight: [out, in] (Hu et al. 2021)."""

    a: Floats
    """[rank, in]; of an embedding [rank, words]."""

    b: Floats
    """[out, rank]; of an embedding [width, rank]."""

    scaling: float
    magnitude: Floats | None = None
    """[out]: the size of each row of the adapted weight, learnt apart from its direction (DoRA, Liu et al. 2024)."""

    bias: Floats | None = None
    """[out]: added to the module's bias, times the scaling."""

    embedding: bool = False
    """Whether the module is a table of [words, width], so that its update is the transpose of the product."""

    @property
    def rank(self) -> int:
        """Width of the two matrices."""
        return int(self.a.shape[0])

    def adapted(self, weight: Floats, *, turned: bool = False) -> Floats:
        """The weight [out, in], or if it is `turned` [in, out], that a layer with this update computes with."""
        left, right = (self.a.T, self.b.T) if turned else (self.b, self.a)
        total: Floats = np.matmul(left * np.float32(self.scaling), right)
        total += weight
        if self.magnitude is not None:
            sizes = np.linalg.norm(total, axis=0 if turned else 1)
            total *= self.magnitude / sizes if turned else (self.magnitude / sizes)[:, None]
        return total

    def svd(self) -> tuple[Doubles, Doubles, Doubles]:
        """The product's singular value decomposition, from the small matrices alone: [out, k], [k] and [k, in]."""
        q_out, r_out = np.linalg.qr(self.b.astype(np.float64) * self.scaling)
        q_in, r_in = np.linalg.qr(self.a.astype(np.float64).T)
        left, values, right = np.linalg.svd(np.matmul(r_out, r_in.T))
        return np.matmul(q_out, left), values, np.matmul(right, q_in.T)

    def tensors(self, module: str) -> dict[str, Floats]:
        """The update as PEFT stores it; its scaling is in the configuration."""
        names = {values: name for name, values in _PARTS.items() if ("embedding" in name) == self.embedding}
        names |= {_PARTS[name]: name for name in ("lora_magnitude_vector", "lora_B.bias")}
        stored = {part: getattr(self, part) for part in names}
        return {f"{_PREFIX}{module}.{names[part]}": each for part, each in stored.items() if each is not None}


@dataclass(frozen=True)
class Meaning:
    """Everything that an adapter changes, by the base's own names."""

    factors: dict[str, Factors]
    """By module."""

    whole: dict[str, Floats]
    """Parameters that were trained whole and take the place of the base's, by name: `modules_to_save`, biases, and
    embeddings that grew with the vocabulary."""


def meaning_of(adapter: Adapter) -> Meaning:
    """Sort an adapter's tensors by what they do.

    Raises:
        TargetError: a tensor is not known, or the half of a pair.
    """
    _check_kind(adapter)
    parts: dict[str, dict[str, Floats]] = {}
    whole: dict[str, Floats] = {}
    embeddings: set[str] = set()
    for name, tensor in adapter.tensors.items():
        module, part = part_of(name)
        if part is None:
            whole[module] = tensor.array()
            continue
        parts.setdefault(module, {})[_PARTS[part]] = tensor.array()
        if "embedding" in part:
            embeddings.add(module)
    for module, found in parts.items():
        if not {"a", "b"} <= set(found) or found["a"].shape[0] != found["b"].shape[1]:
            raise TargetError(
                f"{module} has not both of its matrices, in shapes that fit.",
                where=str(adapter.folder / WEIGHTS_NAME),
                remedy="A tensor is missing or was edited; copy or train the adapter again.",
            )
    factors = {
        module: Factors(
            **found,
            scaling=_scaling(adapter.config, module, found["a"].shape[0]),
            embedding=module in embeddings,
        )
        for module, found in parts.items()
    }
    return Meaning(factors, whole)


def folded(factors: Factors, weight: float = 1.0) -> Factors:
    """The update times `weight`, with the scaling multiplied into its matrices."""
    scale = np.float32(factors.scaling * weight)
    bias = None if factors.bias is None else factors.bias * scale
    return replace(factors, b=factors.b * scale, bias=bias, scaling=1.0)


def part_of(name: str) -> tuple[str, str | None]:
    """Of a tensor in the file: its module and part there, or a whole parameter's name and None."""
    inner = name.removeprefix(_PREFIX)
    for part in _PARTS:
        if inner.endswith(f".{part}"):
            return inner.removesuffix(f".{part}"), part
    return inner.replace(".base_layer.", "."), None


def place_of(module: str) -> tuple[int | None, str]:
    """The number of the layer that a module is in, and its name there."""
    parts = re.fullmatch(r".*?\.(\d+)\.(.+)", module)
    return (int(parts[1]), parts[2]) if parts else (None, module)


def kinds_of(modules: Iterable[str]) -> list[str]:
    """The names that modules have inside their layers, each once."""
    return list(dict.fromkeys(place_of(module)[1] for module in modules))


def _check_kind(adapter: Adapter) -> None:
    strange = next((what for field, what in LORA_BEYOND.items() if adapter.config.get(field)), None)
    initial = adapter.config.get("init_lora_weights")
    if isinstance(initial, str) and initial.startswith(LORA_INITS_BEYOND):
        strange = f"was begun with {initial}, which changes the base's weights too"
    if strange:
        raise TargetError(
            f"is more than a sum of products: it {strange}.",
            where=str(adapter.folder),
            remedy="Use it with PEFT itself, which can convert some of these to plain LoRA.",
        )


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """A module's alpha, which may be its own in `alpha_pattern`, over the rank or its root.

    PEFT reads the keys of the pattern as expressions for the ends of modules' names, and takes the first that fits.
    """
    pattern: dict[str, float] = config.get("alpha_pattern") or {}
    key = next((key for key in pattern if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = float(config["lora_alpha"] if key is None else pattern[key])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
