"""A machine as plain values, and a decision that follows from them alone, also for a machine that is not here."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Final, Generic, Literal, TypeVar

from peftkit.errors import InputError, nearest
from peftkit.recipe.hyperparameters import Training

__all__ = ["AMPERE", "DEVICES", "Decision", "Device", "Hardware", "device_named", "set_by_recipe"]

Device = Literal["cpu", "cuda", "mps"]
Choice = TypeVar("Choice", covariant=True)

AMPERE = (8, 0)
"""The compute capability from which on NVIDIA's GPUs have bf16, TF32 and kernels for variable lengths."""

_GB = 10**9
_TERA = 10**12
_CORES = 8  # of the machine around a device; nothing that is decided here depends on it
_SIZE = re.compile(r"(\d{1,4}(?:\.\d+)?)gi?b")


@dataclass(frozen=True)
class Hardware:
    """The machine that a run uses.

    Attributes:
        device: `cpu`, `cuda`, or `mps`, which is torch's name of Apple's GPUs.
        name: of the device.
        memory_bytes: of one GPU, or of a machine without one.
        device_count: GPUs.
        cpu_cores: of the machine.
        capability: CUDA compute capability: (7, 5) is a T4, (8, 0) an A100, (9, 0) an H100. None without CUDA.
        cpu_bf16: whether the CPU multiplies bf16 in hardware (AVX512-BF16 or AMX).
        flops_16bit: published peak operations per second on 16-bit numbers, without sparsity; None where unknown.
        flops_fp32: the same on 32-bit numbers, without TF32.
        memory_bytes_per_second: published peak bandwidth; None where unknown.
    """

    device: Device
    name: str
    memory_bytes: int
    device_count: int
    cpu_cores: int
    capability: tuple[int, int] | None = None
    cpu_bf16: bool = False
    flops_16bit: float | None = None
    flops_fp32: float | None = None
    memory_bytes_per_second: float | None = None

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
        """The decision with these fields; JSON has made a list of a tuple."""
        choice = values["choice"]
        return Decision(values["name"], tuple(choice) if isinstance(choice, list) else choice, values["reason"])


def set_by_recipe(name: str, training: Training, field: str) -> Decision[Any] | None:
    """What a recipe sets itself, which always wins; None where it leaves a field of `training` to peftkit."""
    value = getattr(training, field, None) if field in training.model_fields_set else None
    return None if value is None else Decision(name, value, f"the recipe sets training.{field}")


def _gpu(
    name: str, gigabytes: int, capability: tuple[int, int], *, tensor: float | None, plain: float, bandwidth: int
) -> Hardware:
    """An NVIDIA GPU: 16-bit and 32-bit operations in 10^12 a second, and bandwidth in 10^9 bytes a second."""
    rates = (None if tensor is None else tensor * _TERA, plain * _TERA, float(bandwidth * _GB))
    return Hardware("cuda", name, gigabytes * _GB, 1, _CORES, capability, False, *rates)


# As NVIDIA publishes them, without sparsity and with sums in fp32: data sheets and product briefs of T4, V100 SXM2, L4,
# A10, A100 SXM4 and H100 SXM5 (where a sheet has sparse rates alone, half of these); for the RTX 3090 and 4090 the
# white papers of GA102 (2020) and Ada (2022). Of the RTX 3060 it publishes cores, clocks and memory alone, which are
# 3,584 x 2 x 1.78 GHz and 192 bits x 15 Gbit/s. Compute capabilities are those of the CUDA programming guide.
DEVICES: Final[dict[str, Hardware]] = {
    "cpu": Hardware("cpu", "a CPU with 16 GB", 16 * _GB, 1, _CORES),
    "mps": Hardware("mps", "an Apple GPU with 16 GB", 16 * _GB, 1, _CORES),
    "t4": _gpu("T4", 16, (7, 5), tensor=65, plain=8.1, bandwidth=320),
    "v100": _gpu("V100", 16, (7, 0), tensor=125, plain=15.7, bandwidth=900),
    "rtx3060": _gpu("RTX 3060", 12, (8, 6), tensor=None, plain=12.7, bandwidth=360),
    "rtx3090": _gpu("RTX 3090", 24, (8, 6), tensor=71, plain=35.6, bandwidth=936),
    "rtx4090": _gpu("RTX 4090", 24, (8, 9), tensor=165.2, plain=82.6, bandwidth=1008),
    "l4": _gpu("L4", 24, (8, 9), tensor=121, plain=30.3, bandwidth=300),
    "a10": _gpu("A10", 24, (8, 6), tensor=125, plain=31.2, bandwidth=600),
    "a100": _gpu("A100", 40, (8, 0), tensor=312, plain=19.5, bandwidth=1555),
    "a100-80gb": _gpu("A100 80GB", 80, (8, 0), tensor=312, plain=19.5, bandwidth=2039),
    "h100": _gpu("H100", 80, (9, 0), tensor=989.5, plain=67, bandwidth=3350),
}
"""Every machine that has a name here."""


def device_named(name: str) -> Hardware:
    """The machine of a name, as `t4` or `RTX 4090`, or a GPU of so much memory, as `24GB`.

    A GPU that is only a size is taken for one of the Ampere generation.

    Raises:
        InputError: there is no such machine.
    """
    plain = name.strip().lower().replace(" ", "").removeprefix("nvidia").removeprefix("geforce")
    if plain in DEVICES:
        return DEVICES[plain]
    size = _SIZE.fullmatch(plain)
    if size and float(size[1]) > 0:
        gigabytes = float(size[1])
        return Hardware("cuda", f"a GPU with {gigabytes:g} GB", int(gigabytes * _GB), 1, _CORES, AMPERE)
    guess = nearest(plain, DEVICES)
    known = f"There are: {', '.join(DEVICES)}; or a GPU's memory, as 24GB."
    remedy = f"Did you mean {guess}? {known}" if guess else known
    raise InputError("is no device that peftkit knows.", where=name, remedy=remedy)
