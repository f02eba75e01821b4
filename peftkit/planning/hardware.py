"""What a machine is, as plain values, and what a decision is that follows from them.

The decisions are functions of these values alone, so that each can be asked about a machine that is not here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar

from peftkit.recipe.hyperparameters import Training

__all__ = ["AMPERE", "Decision", "Device", "Hardware", "set_by_recipe"]

Device = Literal["cpu", "cuda", "mps"]
Choice = TypeVar("Choice", covariant=True)

AMPERE = (8, 0)
"""The compute capability from which on NVIDIA's GPUs have bf16, TF32 and kernels for variable lengths."""


@dataclass(frozen=True)
class Hardware:
    """The machine that a run uses."""

    device: Device
    """`cpu`, `cuda`, or `mps`, which is torch's name of Apple's GPUs."""

    name: str
    memory_bytes: int
    """Of one GPU, or of the whole machine where there is none."""

    device_count: int
    cpu_cores: int
    capability: tuple[int, int] | None = None
    """CUDA compute capability: (7, 5) is a T4, (8, 0) an A100, (9, 0) an H100. None without CUDA."""

    cpu_bf16: bool = False
    """Whether the CPU multiplies bf16 in hardware (AVX512-BF16 or AMX)."""

    flops_16bit: float | None = None
    """Operations in a second on 16-bit numbers at the peak, without sparsity, as published; None where unknown."""

    flops_fp32: float | None = None
    """The same on 32-bit numbers, without TF32."""

    memory_bytes_per_second: float | None = None
    """What the memory delivers at the peak, as published; None where unknown."""

    @property
    def has_bf16(self) -> bool:
        """Whether bf16 is computed in hardware rather than emulated; older GPUs than Ampere lack it."""
        return self.cpu_bf16 if self.device == "cpu" else self.is_ampere

    @property
    def is_ampere(self) -> bool:
        """Whether it is an NVIDIA GPU of the Ampere generation (2020) or newer."""
        return self.capability is not None and self.capability >= AMPERE

    def record(self) -> dict[str, Any]:
        """What a manifest says about the machine."""
        return asdict(self)


@dataclass(frozen=True)
class Decision(Generic[Choice]):
    """What peftkit chooses, and why, in one line."""

    name: str
    choice: Choice
    reason: str

    @property
    def text(self) -> str:
        """The choice for people."""
        if isinstance(self.choice, bool):
            return "on" if self.choice else "off"
        return ", else ".join(self.choice) if isinstance(self.choice, tuple) else str(self.choice)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Decision[Any]:
        """The decision whose fields these are, of which JSON has made a list of what was a tuple."""
        choice = values["choice"]
        return Decision(values["name"], tuple(choice) if isinstance(choice, list) else choice, values["reason"])


def set_by_recipe(name: str, training: Training, field: str) -> Decision[Any] | None:
    """What a recipe says itself of a field of `training`, which always wins; None where it leaves it to peftkit."""
    value = getattr(training, field, None) if field in training.model_fields_set else None
    return None if value is None else Decision(name, value, f"the recipe sets training.{field}")
