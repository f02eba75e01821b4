"""What peftkit decides by the machine: what a run computes in, how it computes, and what saves memory.

`plan` and `doctor` print these decisions, and training uses the same. What a recipe sets itself always wins. Dtypes
aside, none of them changes what is learnt: what would, such as another optimizer, is suggested and never used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Literal

from peftkit.console import size
from peftkit.errors import FieldError
from peftkit.planning.hardware import Decision, Hardware, set_by_recipe
from peftkit.planning.memory import EIGHT_BIT, StepMemory
from peftkit.recipe.hyperparameters import Training
from peftkit.recipe.methods import METHODS, Method
from peftkit.recipe.schema import Base, Data, Precision, Recipe, Source

__all__ = [
    "Attention", "ChosenPrecision", "Dtype", "choose_attention", "choose_base_dtype", "choose_checkpointing",
    "choose_optimizer", "choose_precision", "choose_tf32", "decide", "dtype_of",
]  # fmt: skip

ChosenPrecision = Literal["fp32", "bf16", "fp16"]
Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["varlen", "flash_attention_2", "flex_attention", "sdpa"]

_DTYPES: dict[ChosenPrecision, Dtype] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_PAGED = "paged_adamw_8bit"

_WHY_ATTENTION: Final[dict[Attention, str]] = {
    "varlen": "torch's FlashAttention computes each document alone",
    "flash_attention_2": "FlashAttention computes each document alone",
    "flex_attention": "skips blocks that packed documents do not see",
}

_ANY: Final = Recipe(name="any", base=Base(model="any"), data=Data(train=Source(path="any")))
"""A recipe that leaves everything to peftkit."""


def decide(
    hardware: Hardware,
    recipe: Recipe | None = None,
    *,
    need: StepMemory | None = None,
    packed: bool = True,
    **kernels: bool,
) -> list[Decision[Any]]:
    """Every decision about a run on a machine.

    Without a recipe, everything is left to peftkit. `need` is the memory of a step without activation checkpointing,
    where it is known. For `packed` and `kernels`, see `choose_attention`.

    Raises:
        FieldError: the recipe asks for what the machine cannot do.
    """
    recipe = recipe or _ANY
    training = recipe.training
    precision = choose_precision(recipe.precision, hardware)
    dtype = choose_base_dtype(recipe.base.dtype, recipe.method, precision.choice)
    return [
        precision,
        dtype,
        choose_tf32(training, hardware, precision.choice),
        choose_attention(hardware, dtype.choice, precision.choice, packed=packed, **kernels),
        choose_optimizer(training, hardware, need),
        choose_checkpointing(training, need),
        *_choose_settings(training, hardware),
    ]


def choose_precision(wanted: Precision, hardware: Hardware) -> Decision[ChosenPrecision]:
    """What matmuls are computed in while training.

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
        what = f"{hardware.name} has no bf16 instructions; emulated, they are up to sixty times slower."
        raise FieldError(
            "precision", what, remedy=f"Use precision: auto, which takes {_automatic(hardware).choice} here."
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
        return Decision("precision", "fp32", "exact; precision: bf16 is possible here, with products in half the time")
    return Decision("precision", "fp32", "this CPU has no bf16 instructions, and would be sixty times slower")


def dtype_of(precision: ChosenPrecision) -> Dtype:
    """Torch's name of a precision's dtype."""
    return _DTYPES[precision]


def choose_base_dtype(
    wanted: Literal["auto", "float32", "bfloat16", "float16"], method: Method, precision: ChosenPrecision
) -> Decision[Dtype]:
    """The dtype of the base's weights.

    Trained weights are float32: in pure bf16 only a quarter of them move, and pure fp16 ends in NaN. Frozen ones follow
    the precision; with fp16 only those of linear layers do: embeddings and norms stay float32, so that what passes from
    layer to layer does not overflow. On a quantised base this is the dtype of the linear layers that are not quantised,
    and what the others compute in.
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
    """Whether float32 matmuls may use the first 19 bits of their inputs, which GPUs do faster.

    It is on for what stays 32-bit next to a 16-bit precision, which is coarser still. `precision: fp32` asks for exact
    matmuls, and gets them.

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
    return Decision("TF32", True, f"matmuls that stay fp32 alongside {precision} get faster, and are still finer")


def choose_attention(
    hardware: Hardware,
    base_dtype: Dtype,
    precision: ChosenPrecision,
    *,
    packed: bool,
    varlen: bool = True,
    flash: bool = False,
    flex: bool = True,
) -> Decision[tuple[Attention, ...]]:
    """The kernels to try for packed documents, the best first; `sdpa` is always the last and works everywhere.

    `sdpa` gets a mask that keeps documents apart, and computes what the mask then hides. FlashAttention over variable
    lengths computes each document alone, in 16-bit numbers only: torch ships it (`varlen`), and so does the package
    flash-attn, which waits for the GPU at each step and casts no float32 weights. Flex attention skips blocks that the
    mask hides, has no dropout, and is compiled first. All three need Ampere (Dao 2023).

    Nothing is gained unless several documents share a row (`packed`). Each of the three is considered only if it is
    installed and the model can use it.
    """
    if not packed:
        return Decision("attention", ("sdpa",), "rows of one document have nothing that other kernels could skip")
    if not hardware.is_ampere:
        return Decision("attention", ("sdpa",), "kernels that skip what is masked need an NVIDIA GPU from Ampere on")
    choices: list[Attention] = []
    if varlen and (precision != "fp32" or base_dtype != "float32"):
        choices.append("varlen")
    if flash and base_dtype != "float32":
        choices.append("flash_attention_2")
    if flex:
        choices.append("flex_attention")
    if not choices:
        why = "neither FlashAttention nor flex attention fits this model"
        if varlen or flash:
            why = "FlashAttention takes 16-bit numbers only, and flex attention does not fit this model"
        return Decision("attention", ("sdpa",), why)
    return Decision("attention", (*choices, "sdpa"), f"{_WHY_ATTENTION[choices[0]]}; tried on the model first")


def choose_optimizer(training: Training, hardware: Hardware, need: StepMemory | None = None) -> Decision[str]:
    """The recipe's optimizer and, where a step does not fit into memory, the one with which it would.

    Raises:
        FieldError: the recipe asks for one that has no kernels for the machine.
    """
    name = training.optim
    by_bitsandbytes = "paged" in name or ("8bit" in name and "torch" not in name)
    if hardware.device == "mps" and by_bitsandbytes:
        what = f"{name} needs kernels of bitsandbytes, which has none for Apple's GPUs."
        raise FieldError("training.optim", what, remedy="Remove it, or use adafactor, which keeps less than AdamW.")
    asked = set_by_recipe("optimizer", training, "optim")
    reason = asked.reason if asked else "one kernel for all weights; the same for every method, to be comparable"
    thrifty = _thriftier(training, hardware, need) if need else None
    return Decision("optimizer", name, f"{reason}; {thrifty}" if thrifty else reason)


def _thriftier(training: Training, hardware: Hardware, need: StepMemory) -> str | None:
    """The optimizer with less state after which a step would fit, with the figures; None where there is none."""
    on = training.activation_checkpointing
    now, small = (
        replace(need, optim=optim).parts(need.rows, checkpointing=on) for optim in (training.optim, EIGHT_BIT)
    )
    state, less = now["optimizer"], small["optimizer"]
    excess = sum(now.values()) - need.limit_bytes
    if excess <= 0 or less >= state:
        return None
    if excess <= state - less and hardware.device != "mps":
        return f"its state of {size(state)} is too much here: training.optim={EIGHT_BIT} has {size(less)}"
    if excess <= state and hardware.device == "cuda":
        return f"its state of {size(state)} is too much here: training.optim={_PAGED} moves it out of the GPU"
    return None


def choose_checkpointing(training: Training, need: StepMemory | None = None) -> Decision[bool]:
    """Whether activations are computed again in the backward pass, and whether that is needed for a step to fit."""
    name, on = "checkpointing", training.activation_checkpointing
    asked = set_by_recipe(name, training, "activation_checkpointing")
    if need is None:
        return asked or Decision(name, on, "a third slower, so only where a step does not fit, which is reported")
    peak, lighter = (need.peak_bytes(need.rows, checkpointing=used) for used in (False, True))
    there = size(need.limit_bytes)
    if peak <= need.limit_bytes:
        told = f"a step needs {size(peak)} of {there} without it"
    elif lighter > need.limit_bytes:
        told = f"even with it a step needs {size(lighter)}, and {there} are there"
    else:
        remedy = "with it" if on else "with training.activation_checkpointing=true"
        told = f"a step needs {size(peak)} of {there}, and {remedy} {size(lighter)}"
    return Decision(name, on, f"{asked.reason}; {told}" if asked else told)


def _choose_settings(training: Training, hardware: Hardware) -> list[Decision[Any]]:
    """Whether torch compiles the model, and how batches are made and reach the device."""
    compiling = {
        "cuda": "each new length of rows compiles anew; training.torch_compile=true tries it",
        "mps": "it has not been measured on Apple's GPUs",
        "cpu": "it gained nothing on a CPU when it was measured",
    }[hardware.device]
    # eight rows of 1,024 tokens took 0.02 ms to collate
    making = "rows are tokenised beforehand; a batch takes under a millisecond"
    on_gpu, pinning = hardware.device == "cuda", "batches are where the products are"
    if on_gpu:
        pinning = "batches are copied to the GPU while the host continues"
    settings: list[tuple[str, str, Any, str]] = [
        ("torch.compile", "torch_compile", False, compiling),
        ("workers", "dataloader_num_workers", 0, making),
        ("pinned memory", "dataloader_pin_memory", on_gpu, pinning),
    ]
    return [
        set_by_recipe(name, training, field) or Decision(name, choice, why) for name, field, choice, why in settings
    ]
