"""LoRA (Hu et al. 2021): for each module, two small trained matrices whose product is added to the frozen weight."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from peftkit.errors import FieldError, TargetError
from peftkit.models.methods import PREFIX, Floats, Overlap, Size, TokenRows, TrainingMethod, Update
from peftkit.recipe.hyperparameters import Lora
from peftkit.recipe.names import LORA_BEYOND, LORA_INITS_BEYOND

__all__ = ["METHOD", "Doubles", "Factors", "folded"]

Doubles = npt.NDArray[np.float64]

_PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_B.bias": "bias",
}
_AUTO = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"], "gpt_neox": ["query_key_value"]}
"""The attention's input projections, which the LoRA paper adapts (Hu et al. 2021, section 7.1). GPT-2 holds query, key
and value in one matrix."""
_FALLBACK = ("q_proj", "v_proj")
_NOISE = 1e-6
"""Singular values below this share of the largest are rounding."""
_BLOCK_NUMBERS = 1 << 22


@dataclass(frozen=True)
class Factors(Update):
    """A module's update, `scaling * b @ a`, in the orientation of a Linear's weight: [out, in] (Hu et al. 2021)."""

    a: Floats
    """[rank, in]; of an embedding [rank, vocabulary]."""

    b: Floats
    """[out, rank]; of an embedding [width, rank]."""

    scaling: float
    """What the product is multiplied by."""

    magnitude: Floats | None = None
    """[out]: the size of each row of the adapted weight, trained apart from its direction (DoRA, Liu et al. 2024)."""

    bias: Floats | None = None
    """[out]: added to the module's bias, times the scaling."""

    embedding: bool = False
    """Whether the module is a table of [vocabulary, width], so that its update is the transpose of the product."""

    @property
    def rank(self) -> int:
        """Width of the two matrices."""
        return int(self.a.shape[0])

    @property
    def untouched(self) -> bool:
        """Whether B is all zeros, as it began."""
        return not self.b.any()

    @property
    def needs_bias(self) -> bool:
        """Whether it adds to the module's bias."""
        return self.bias is not None

    @property
    def unmergeable(self) -> str | None:
        """DoRA of an embedding is not merged."""
        both = self.magnitude is not None and self.embedding
        return "is an embedding with DoRA, which peftkit does not merge" if both else None

    @property
    def beyond_product(self) -> str | None:
        """DoRA's magnitudes, or a bias."""
        extra = "DoRA's magnitudes" if self.magnitude is not None else None
        return "biases of its own" if self.bias is not None else extra

    def adapted(self, weight: Floats, *, turned: bool = False) -> Floats:
        """The weight [out, in], or if it is `turned` [in, out], that a layer with this update computes with."""
        left, right = (self.a.T, self.b.T) if turned else (self.b, self.a)
        total: Floats = np.matmul(left * np.float32(self.scaling), right)
        total += weight
        if self.magnitude is not None:
            sizes = np.linalg.norm(total, axis=0 if turned else 1)
            total *= self.magnitude / sizes if turned else (self.magnitude / sizes)[:, None]
        return total

    def adapted_bias(self, bias: Floats) -> Floats | None:
        """The bias with the update's own, which is scaled alike; None where it has none."""
        return None if self.bias is None else bias + self.bias * np.float32(self.scaling)

    def size(self, weight: Floats | None) -> Size:
        """Of DoRA the whole change of the weight where that is given, and otherwise of its direction alone."""
        _, values, _ = self.svd()
        if self.magnitude is not None and weight is not None:
            change = self.adapted(weight) - weight
            norm, largest = float(np.linalg.norm(change)), float(np.abs(change).max())
        else:
            norm, largest = float(np.linalg.norm(values)), self._largest()
        return Size(self.scaling, norm, largest, _effective_rank(values))

    def overlap(self, other: Update) -> Overlap | None:
        """The cosine of the angle between the products, and the similarity of Hu et al. 2021, section 7.2."""
        if not isinstance(other, Factors) or self.a.shape[1] != other.a.shape[1]:
            return None
        if self.b.shape[0] != other.b.shape[0]:
            return None
        sizes = (self._inner(self) * other._inner(other)) ** 0.5
        bases = [self._directions(), other._directions()]
        inputs, outputs = (_similarity(bases[0][side], bases[1][side]) for side in (0, 1))
        return Overlap(self._inner(other) / sizes if sizes else None, inputs, outputs)

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
        return {f"{PREFIX}{module}.{names[part]}": each for part, each in stored.items() if each is not None}

    def _inner(self, other: Factors) -> float:
        """The sum of the products of two updates' numbers, without making either: tr(A₁ᵀB₁ᵀB₂A₂)."""
        return float(np.sum((self.b.T @ other.b) * (self.a @ other.a.T))) * self.scaling * other.scaling

    def _directions(self) -> tuple[Doubles, Doubles]:
        """Orthonormal input directions [in, k] and output directions [out, k] of an update; k is its true rank."""
        left, values, right = self.svd()
        used = values > values.max(initial=0) * _NOISE
        return right.T[:, used], left[:, used]

    def _largest(self) -> float:
        """The largest number of the product, made some rows at a time: that of a large layer is large itself."""
        rows = max(1, _BLOCK_NUMBERS // self.a.shape[1])
        blocks = (self.b[start : start + rows] @ self.a for start in range(0, len(self.b), rows))
        return max(float(np.abs(block).max()) for block in blocks) * abs(self.scaling)


def folded(factors: Factors, weight: float = 1.0) -> Factors:
    """The update times `weight`, with the scaling multiplied into its matrices."""
    scale = np.float32(factors.scaling * weight)
    bias = None if factors.bias is None else factors.bias * scale
    return replace(factors, b=factors.b * scale, bias=bias, scaling=1.0)


class _Lora(TrainingMethod):
    name = "LoRA"
    adapter = "a LoRA adapter"
    tag = "lora"
    peft_type = "LORA"
    parts = tuple(_PARTS)
    beginning = "its B is all zeros"
    strength = "lora.lora_alpha"
    smaller = "Lower lora.r, or use a smaller base."
    trains_rows = True

    def targets(self, structure: Any, settings: Lora) -> list[str]:
        from peftkit.models.attach import attention_inputs, filtered, not_adapted, resolve_targets

        usual = attention_inputs(structure, _FALLBACK)
        found = resolve_targets(structure, settings.target_modules, _AUTO, usual, "lora.target_modules")
        refused = not_adapted(structure, found)
        if refused and settings.target_modules not in ("auto", "all-linear"):
            name, reason = next(iter(refused.items()))
            raise FieldError("lora.target_modules", f"PEFT does not adapt {name}: {reason}", remedy="Leave it out.")
        extras = settings.model_extra or {}
        left = filtered([name for name in found if name not in refused], extras)
        _check_patterns(left, extras)
        return left

    def attach(
        self, model: Any, settings: Lora, targets: list[str], base_folder: Path, rows: TokenRows | None = None
    ) -> Any:
        from peft import LoraConfig

        from peftkit.models.attach import FILTERS, adapted

        arguments = settings.model_dump(exclude={"target_modules", *FILTERS}) | {
            "trainable_token_indices": rows or None
        }
        return adapted(model, LoraConfig, targets, base_folder, **arguments)

    def has_effect(self, model: Any, before: Mapping[str, Any]) -> bool:
        """Whether any B has left the zeros that it began as."""
        del before
        names = ("lora_B", "lora_embedding_B")
        trained = [weight for name, weight in model.named_parameters() if any(part in name for part in names)]
        return any(bool(weight.count_nonzero()) for weight in trained)

    def can_be_disabled(self, settings: Lora) -> bool:
        """Trained biases stay in the base, whatever is disabled."""
        return settings.bias == "none"

    def summary(self, settings: Lora, kinds: list[str]) -> str:
        used = [name for name, is_used in (("DoRA", settings.use_dora), ("rslora", settings.use_rslora)) if is_used]
        where = [super().summary(settings, kinds)] if kinds else []
        return ", ".join([f"r {settings.r}", f"alpha {settings.lora_alpha:g}", *used, *where])

    def damaged(self, config: Mapping[str, Any]) -> list[str]:
        strange = [name for name in ("r", "lora_alpha") if not isinstance(config.get(name), int | float)]
        for name in ("rank_pattern", "alpha_pattern"):
            pattern = config.get(name) or {}
            numbers = isinstance(pattern, dict) and all(isinstance(number, int | float) for number in pattern.values())
            if not (numbers and all(_is_expression(key) for key in pattern)):
                strange.append(name)
        return strange

    def updates(
        self, folder: Path, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Floats]]
    ) -> dict[str, Update]:
        _check_kind(folder, config)
        updates: dict[str, Update] = {}
        for module, tensors in parts.items():
            found = {_PARTS[part]: tensor for part, tensor in tensors.items()}
            if not {"a", "b"} <= set(found) or found["a"].shape[0] != found["b"].shape[1]:
                what = f"{module} has not both of its matrices, in shapes that fit."
                remedy = "A tensor is missing or was edited; copy or train the adapter again."
                raise TargetError(what, where=str(folder / "adapter_model.safetensors"), remedy=remedy)
            scaling = _scaling(config, module, found["a"].shape[0])
            updates[module] = Factors(**found, scaling=scaling, embedding=any("embedding" in part for part in tensors))
        return updates


def _check_patterns(targets: list[str], extras: Mapping[str, Any]) -> None:
    """See that each rank and each alpha of a pattern is that of some target."""
    for field in ("rank_pattern", "alpha_pattern"):
        for key in extras.get(field) or {}:
            if not (_is_expression(key) and any(_fits(key, name) for name in targets)):
                what = f"{key!r} matches no module that gets an adapter."
                raise FieldError(f"lora.{field}", what, remedy="Use the end of a module's name.")


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    strange = next((what for field, what in LORA_BEYOND.items() if config.get(field)), None)
    initial = config.get("init_lora_weights")
    if isinstance(initial, str) and initial.startswith(LORA_INITS_BEYOND):
        strange = f"was begun with {initial}, which changes the base's weights too"
    if strange:
        what = f"is more than a sum of products: it {strange}."
        remedy = "Use it with PEFT itself, which can convert some of these to plain LoRA."
        raise TargetError(what, where=str(folder), remedy=remedy)


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """A module's alpha, which may be its own in `alpha_pattern`, over the rank or its root.

    PEFT reads the keys of the pattern as expressions for the ends of modules' names, and takes the first that fits.
    """
    pattern: dict[str, float] = config.get("alpha_pattern") or {}
    key = next((key for key in pattern if _fits(key, module)), None)
    alpha = float(config["lora_alpha"] if key is None else pattern[key])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _fits(key: str, module: str) -> bool:
    """Whether a pattern's key is for a module, as PEFT has it."""
    return re.match(rf"(.*\.)?({key})$", module) is not None


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _effective_rank(values: Doubles) -> float:
    total = values.sum()
    if not total:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _similarity(one: Doubles, other: Doubles) -> float | None:
    smaller = min(one.shape[1], other.shape[1])
    return float(np.sum((one.T @ other) ** 2)) / smaller if smaller else None


METHOD = _Lora()
