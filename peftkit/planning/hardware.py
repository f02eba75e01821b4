"""What a machine is, as plain values, and which number types it should compute in.

The decisions are functions of these values alone, so that each can be asked about a machine that is not here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from peftkit.errors import FieldError
from peftkit.recipe.schema import Method, Precision

__all__ = [
    "Attention",
    "ChosenPrecision",
    "Dtype",
    "Hardware",
    "choose_attention",
    "choose_base_dtype",
    "choose_precision",
    "dtype_of",
]

ChosenPrecision = Literal["fp32", "bf16", "fp16"]
Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["flash_attention_2", "flex_attention", "sdpa"]

_DTYPES: dict[ChosenPrecision, Dtype] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_FIRST_WITH_BF16 = (8, 0)  # Ampere; older GPUs emulate bf16 or lack it
_FIRST_WITH_VARIABLE_LENGTH = (8, 0)  # Dao 2023: FlashAttention-2 needs Ampere


@dataclass(frozen=True)
class Hardware:
    """The machine that a run uses."""

    device: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int
    """Of one GPU, or of the whole machine where there is none."""

    device_count: int
    cpu_cores: int
    capability: tuple[int, int] | None = None
    """CUDA compute capability: (7, 5) is a T4, (8, 0) an A100, (9, 0) an H100. None without a GPU."""

    cpu_bf16: bool = False
    """Whether the CPU multiplies bf16 in hardware (AVX512-BF16 or AMX)."""

    @property
    def has_bf16(self) -> bool:
        """Whether bf16 is computed in hardware rather than emulated."""
        if self.device == "cpu":
            return self.cpu_bf16
        return self.capability is not None and self.capability >= _FIRST_WITH_BF16

    def record(self) -> dict[str, Any]:
        """What a manifest says about the machine."""
        return asdict(self)


def choose_precision(wanted: Precision, hardware: Hardware) -> ChosenPrecision:
    """The number type of the products while training.

    `auto` is bf16 on a GPU that has it, fp16 on an older one, and fp32 on a CPU.

    Raises:
        FieldError: the machine cannot compute in what is wanted, or only by an emulation that is far slower.
    """
    if wanted == "auto":
        if hardware.device == "cpu":
            return "fp32"
        return "bf16" if hardware.has_bf16 else "fp16"
    if wanted == "fp16" and hardware.device == "cpu":
        raise FieldError("precision", "fp16 needs a GPU; on a CPU it is ignored.", remedy="Use precision: auto.")
    if wanted == "bf16" and not hardware.has_bf16:
        instead = "fp32" if hardware.device == "cpu" else "fp16"
        raise FieldError(
            "precision",
            f"{hardware.name} has no bf16 instructions; emulated, they are up to sixty times slower.",
            remedy=f"Use precision: auto, which takes {instead} here.",
        )
    return wanted


def dtype_of(precision: ChosenPrecision) -> Dtype:
    """Torch's name of a precision's number type."""
    return _DTYPES[precision]


def choose_base_dtype(
    wanted: Literal["auto", "float32", "bfloat16", "float16"], method: Method, precision: ChosenPrecision
) -> Dtype:
    """The number type in which the base's weights are held.

    Weights that are trained are float32: in pure bf16 only a quarter of them move, and pure fp16 ends in NaN. Frozen
    ones follow bf16, whose range is float32's, and stay float32 beside fp16, which overflows. On a quantised base this
    is the type of what is not quantised.
    """
    if method == "full":
        return "float32"
    if wanted != "auto":
        return wanted
    return "bfloat16" if precision == "bf16" else "float32"


def choose_attention(
    hardware: Hardware, base_dtype: Dtype, *, packed: bool, flash: bool, flex: bool
) -> tuple[Attention, ...]:
    """The kernels to try for packed documents, the best first; `sdpa` is always the last and works everywhere.

    `sdpa` gets a mask that keeps documents apart and computes what it then throws away. The kernels for variable
    lengths skip it: FlashAttention, which takes 16-bit numbers only, and flex attention.

    Args:
        hardware: the machine.
        base_dtype: the number type that the base is held in.
        packed: whether several documents share a row; otherwise nothing is gained.
        flash: whether FlashAttention is installed and the model can use it.
        flex: whether the model can use flex attention as it is set up.
    """
    new_enough = hardware.capability is not None and hardware.capability >= _FIRST_WITH_VARIABLE_LENGTH
    choices: list[Attention] = []
    if packed and hardware.device == "cuda" and new_enough:
        if flash and base_dtype != "float32":
            choices.append("flash_attention_2")
        if flex:
            choices.append("flex_attention")
    return (*choices, "sdpa")
