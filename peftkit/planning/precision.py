"""The number types of a run: what products are computed in, and what weights are held in."""

from __future__ import annotations

from typing import Literal

from peftkit.errors import FieldError
from peftkit.planning.hardware import Decision, Hardware, set_by_recipe
from peftkit.recipe.hyperparameters import Training
from peftkit.recipe.methods import METHODS, Method
from peftkit.recipe.schema import Precision

__all__ = ["ChosenPrecision", "Dtype", "choose_base_dtype", "choose_precision", "choose_tf32", "dtype_of"]

ChosenPrecision = Literal["fp32", "bf16", "fp16"]
Dtype = Literal["float32", "bfloat16", "float16"]

_DTYPES: dict[ChosenPrecision, Dtype] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def choose_precision(wanted: Precision, hardware: Hardware) -> Decision[ChosenPrecision]:
    """The number type of the products while training.

    `auto` is bf16 on an NVIDIA GPU that has it, fp16 on an older one, and fp32 elsewhere.

    Raises:
        FieldError: the machine cannot compute in what is wanted, or only by an emulation that is far slower.
    """
    if wanted == "auto":
        return _automatic(hardware)
    if wanted != "fp32" and hardware.device == "mps":
        what = f"{wanted} is not used on Apple's GPUs, where nobody has measured what it does to a run."
        raise FieldError("precision", what, remedy="Use precision: auto, which takes fp32 here.")
    if wanted == "fp16" and hardware.device == "cpu":
        raise FieldError("precision", "fp16 needs a GPU; on a CPU it is ignored.", remedy="Use precision: auto.")
    if wanted == "bf16" and not hardware.has_bf16:
        raise FieldError(
            "precision",
            f"{hardware.name} has no bf16 instructions; emulated, they are up to sixty times slower.",
            remedy=f"Use precision: auto, which takes {_automatic(hardware).choice} here.",
        )
    return Decision("precision", wanted, "the recipe sets precision")


def _automatic(hardware: Hardware) -> Decision[ChosenPrecision]:
    if hardware.device == "cuda":
        if hardware.has_bf16:
            return Decision("precision", "bf16", "this GPU computes in bf16, whose range is that of fp32")
        return Decision("precision", "fp16", "this GPU is older than bf16; the loss is scaled, so that fp16 has room")
    if hardware.device == "mps":
        return Decision("precision", "fp32", "nothing else has been measured on Apple's GPUs")
    if hardware.has_bf16:
        # on two cores with AVX512-BF16, GPT-2's products took 34 ms instead of 76, and 430 instead of 1315
        why = "exact; precision: bf16 is possible here, with products in half the time"
        return Decision("precision", "fp32", why)
    return Decision("precision", "fp32", "this CPU has no bf16 instructions, and would be sixty times slower")


def dtype_of(precision: ChosenPrecision) -> Dtype:
    """Torch's name of a precision's number type."""
    return _DTYPES[precision]


def choose_base_dtype(
    wanted: Literal["auto", "float32", "bfloat16", "float16"], method: Method, precision: ChosenPrecision
) -> Decision[Dtype]:
    """The number type in which the base's weights are held.

    Weights that are trained are float32: in pure bf16 only a quarter of them move, and pure fp16 ends in NaN. Frozen
    ones follow the precision. Beside fp16 that is so for linear layers alone: embeddings and norms stay float32, so
    that what passes from layer to layer does not overflow. On a quantised base this is the dtype of the linear layers
    that are not quantised, and what the others compute in.
    """
    name = "base weights"
    if METHODS[method].section is None:
        return Decision(name, "float32", "they are trained; in bf16 three of four would not move")
    if wanted != "auto":
        return Decision(name, wanted, "the recipe sets base.dtype")
    if precision == "bf16":
        return Decision(name, "bfloat16", "frozen weights follow bf16, in half the memory")
    if precision == "fp16":
        return Decision(name, "float16", "frozen linear layers follow fp16; embeddings and norms are float32")
    return Decision(name, "float32", "that is what products are computed in")


def choose_tf32(training: Training, hardware: Hardware, precision: ChosenPrecision) -> Decision[bool]:
    """Whether products of 32-bit numbers may be computed from their first 19 bits, which GPUs do faster.

    It is on for what stays 32-bit beside a 16-bit precision, as that is coarser still. `precision: fp32` asks for whole
    products, and gets them.

    Raises:
        FieldError: the recipe wants it, and the machine has no TF32.
    """
    asked = set_by_recipe("TF32", training, "tf32")
    if asked and asked.choice and not hardware.is_ampere:
        what = f"{hardware.name} has no TF32, which NVIDIA's GPUs have from Ampere on."
        raise FieldError("training.tf32", what, remedy="Remove it.")
    if asked:
        return asked
    if not hardware.is_ampere:
        return Decision("TF32", False, "NVIDIA's GPUs have it from Ampere on")
    if precision == "fp32":
        return Decision("TF32", False, "precision: fp32 asks for whole products; training.tf32=true is faster")
    return Decision("TF32", True, f"products that stay fp32 beside {precision} get faster, and are still finer")
