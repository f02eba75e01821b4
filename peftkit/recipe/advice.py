"""What experience says of a field: the values that are usual, who used them, and what other ones do.

The advice on what depends on the method is with the methods, in `peftkit.recipe.methods`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from peftkit.recipe.schema import Recipe

__all__ = ["FIELDS", "Advice", "Between", "Measure", "OneOf", "Usual", "Verdict", "shown"]

_SMALL = 1e-3  # numbers below are read more easily with an exponent
Verdict = Literal["usual", "below", "above", "other"]


@dataclass(frozen=True)
class Between:
    """A range that a number is usually in."""

    low: float
    high: float
    source: str  # who used it, and where that is written
    kinds: tuple[str, ...] = ()
    """What it is said of: methods, or `new` for every weight of a base made from `base.init`; empty for all."""

    def verdict(self, value: Any) -> Verdict:
        """Where a number lies."""
        return "below" if value < self.low else "above" if value > self.high else "usual"

    @property
    def middle(self) -> float:
        """The number as far above the low end as below the high one, by ratio, to one digit."""
        return float(f"{(self.low * self.high) ** 0.5:.0e}")

    def __str__(self) -> str:
        return shown(self.low) if self.low == self.high else f"{shown(self.low)} to {shown(self.high)}"


@dataclass(frozen=True)
class OneOf:
    """Values of which a field usually has one."""

    values: tuple[Any, ...]
    source: str
    kinds: tuple[str, ...] = ()

    def verdict(self, value: Any) -> Verdict:
        """Whether a value is one of them."""
        return "usual" if value in self.values else "other"

    def __str__(self) -> str:
        return " or ".join(shown(value) for value in self.values)


Usual: TypeAlias = Between | OneOf


@dataclass(frozen=True)
class Measure:
    """A figure that a field is judged by, where its own value alone says little."""

    name: str
    of: Callable[[Recipe], float | None]  # the figure of a recipe; None where the recipe alone does not give it


@dataclass(frozen=True)
class Advice:
    """What is known of a field besides its meaning."""

    usual: tuple[Usual, ...] = ()  # the first that is said of what a recipe trains holds
    higher: str | None = None  # what a higher number does
    lower: str | None = None  # what a lower number does
    named: Mapping[str, str] = field(default_factory=dict)  # what a value does, by its name
    measure: Measure | None = None

    @property
    def effects(self) -> dict[str, str]:
        """What other values do: `higher`, `lower`, or a value's name."""
        ways = {"higher": self.higher, "lower": self.lower, **self.named}
        return {way: effect for way, effect in ways.items() if effect}

    def usual_for(self, kind: str) -> Usual | None:
        """The usual values for what is trained; None where nothing is usual."""
        return next((usual for usual in self.usual if not usual.kinds or kind in usual.kinds), None)

    def usual_texts(self) -> list[str]:
        """Each usual range or choice with its source, and what it is said of where that is not everything."""
        unit = f"{self.measure.name} " if self.measure else ""
        texts = []
        for usual in self.usual:
            of = f"{', '.join(usual.kinds)}: " if usual.kinds else ""
            texts.append(f"{of}{unit}{usual} ({usual.source})")
        return texts or ["nothing: it depends on the run"]

    def lines(self) -> list[tuple[str, str]]:
        """All of it, each with what it is: `usual`, `higher`, `lower`, or a value's name."""
        return [*(("usual", text) for text in self.usual_texts()), *self.effects.items()]


def shown(value: Any) -> str:
    """A value as a recipe shows it: `5e-5`, `true`, `[c_attn]`."""
    if isinstance(value, float):
        small = 0 < abs(value) < _SMALL
        return re.sub(r"\.?0*e-0?", "e-", f"{value:e}") if small else f"{value:g}"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    return json.dumps(value)


_BERT = "Devlin et al. 2019, appendix A.3"
_GPT2 = "Radford et al. 2019, table 2"
_GPT3 = "Brown et al. 2020, appendix B"
_LORA = "Hu et al. 2021, table 11"
_QLORA = "Dettmers et al. 2023, appendix B.2"
_ALPACA = "Taori et al. 2023"


def _warmup_share(recipe: Recipe) -> float | None:
    steps, total = recipe.training.warmup_steps, recipe.training.max_steps
    return steps if steps < 1 else steps / total if total > 0 else None


_BATCH = Measure("effective batch on one device", lambda recipe: recipe.training.effective_batch)
_USUAL_BATCH = Between(8, 128, f"8 in {_LORA}; 16 to 32 in {_BERT}; 128 in {_ALPACA}")

FIELDS: Final[Mapping[str, Advice]] = {
    "base.dropout": Advice(
        (Between(0, 0.1, "0.1 in Radford et al. 2018, section 4.1, and in Transformers' GPT2Config"),),
        higher="less overfitting on small data, and slower learning",
        lower="faster learning, and more overfitting where data is small or seen often",
    ),
    "base.dtype": Advice(
        (OneOf(("auto",), "Dettmers et al. 2023, section 3, compute in bfloat16"),),
        named={
            "float32": "frozen weights exact, in 4 bytes each",
            "bfloat16": "frozen weights in 2 bytes each, to about 3 digits; slow on a CPU that does not compute in it",
            "float16": "frozen weights in 2 bytes each, and numbers above 65,504 overflow",
        },
    ),
    "base.init.n_layer": Advice(
        (Between(12, 48, _GPT2),),
        higher="a deeper model: it learns more from much data; memory and time grow in proportion",
        lower="a smaller and faster model that learns less; right where there is little data",
    ),
    "base.init.n_head": Advice(
        (Between(12, 96, "Brown et al. 2020, table 2.1, each head 64 to 128 wide"),),
        higher="more places that a token can look at together, through heads that are each narrower",
        lower="fewer places that a token can look at together, through heads that are each wider",
    ),
    "base.init.n_embd": Advice(
        (Between(768, 1600, _GPT2),),
        higher="a wider model; its parameters and time grow with the square",
        lower="a smaller and faster model that learns less; right where there is little data",
    ),
    "base.init.n_positions": Advice(
        (Between(512, 2048, "512 in Radford et al. 2018; 1,024 in Radford et al. 2019; 2,048 in Brown et al. 2020"),),
        higher="longer texts can be seen; places that no training text reaches stay untrained",
        lower="less memory; longer texts can never be seen whole",
    ),
    "base.init.vocab_size": Advice(
        (Between(32000, 50257, "32,000 in Touvron et al. 2023 (Llama 2), section 2.2; 50,257 in Radford et al. 2019"),),
        higher="fewer tokens for a text, and larger embeddings, whose rare tokens small data does not train",
        lower="more tokens for a text, and smaller embeddings; right where there is little data",
    ),
    "quantization.backend": Advice(
        (OneOf(("bitsandbytes",), "the library of Dettmers et al. 2023"),),
        named={"another": "other rounding of the weights and other kernels: compare its perplexity and its speed"},
    ),
    "quantization.load_in_4bit": Advice(
        (OneOf((True,), "Dettmers et al. 2023, section 3"),),
        named={"true": "about half a byte for each weight", "false": "needs load_in_8bit: a byte for each weight"},
    ),
    "quantization.load_in_8bit": Advice(
        (OneOf((False,), "4 bits do as well as 8 and 16 in Dettmers et al. 2023, table 3"),),
        named={"true": "twice the memory of 4 bits, and a smaller rounding error"},
    ),
    "quantization.bnb_4bit_quant_type": Advice(
        (OneOf(("nf4",), "lower perplexity than fp4 in Dettmers et al. 2023, table 2"),),
        named={"fp4": "a larger rounding error of weights that are normally distributed"},
    ),
    "quantization.bnb_4bit_use_double_quant": Advice(
        (OneOf((True,), "no loss found in Dettmers et al. 2023, section 4"),),
        named={"true": "0.37 bits less for each weight", "false": "0.37 bits more for each weight"},
    ),
    "data.max_length": Advice(
        (Between(128, 1024, f"512 in {_ALPACA} and in the code of Hu et al. 2021; 1,024 is all that GPT-2 sees"),),
        higher="longer documents stay whole; activations take more memory, in proportion",
        lower="less memory; longer documents are split or cut, as `truncation` says",
    ),
    "data.packing": Advice(
        (),
        named={
            "true": "no step is spent on padding (Krell et al. 2021); a batch holds more documents",
            "false": "one document in a sequence, filled up with padding to the longest of its batch",
        },
    ),
    "precision": Advice(
        (OneOf(("auto",), "16-bit products with fp32 weights, Micikevicius et al. 2018; bf16, Kalamkar et al. 2019"),),
        named={
            "fp32": "exact; on a GPU slower, with more memory",
            "bf16": "as wide a range as fp32's with fewer digits; needs a GPU that has it",
            "fp16": "a narrow range: small gradients need scaling, which skips steps that overflow",
        },
    ),
    "training.per_device_train_batch_size": Advice(
        (_USUAL_BATCH,),
        higher="steadier gradients and fewer steps an epoch; more memory",
        lower="less memory and more steps an epoch, each noisier",
        measure=_BATCH,
    ),
    "training.gradient_accumulation_steps": Advice(
        (_USUAL_BATCH,),
        higher="steadier gradients and fewer steps an epoch, in the same memory",
        lower="more steps an epoch, each noisier",
        measure=_BATCH,
    ),
    "training.max_steps": Advice(
        (), higher="a longer run, with the schedule stretched to it", lower="a shorter run, with the schedule shrunk"
    ),
    "training.weight_decay": Advice(
        (Between(0, 0.1, f"0 to 0.01 in {_LORA}; 0.1 in {_GPT3}"),),
        higher="trained weights are kept small: less overfitting, and less learned",
        lower="trained weights grow as they like; in a short run it hardly shows",
    ),
    "training.warmup_steps": Advice(
        (Between(0, 0.1, "0.06 for LoRA in Hu et al. 2021, table 9; 0.01 in Devlin et al. 2019, appendix A.2"),),
        higher="the first updates of AdamW, badly scaled, stay small for longer; less time at the full rate",
        lower="the full rate sooner: too soon, the loss may jump at the start",
        measure=Measure("share of all steps", _warmup_share),
    ),
    "training.max_grad_norm": Advice(
        (Between(0.3, 1.0, f"0.3 in {_QLORA}; 1.0 in {_GPT3}"),),
        higher="single bad batches move the weights more (Pascanu et al. 2013)",
        lower="single bad batches move the weights less; too low, every step is cut short",
        named={"0": "no clipping at all"},
    ),
    "training.optim": Advice(
        (OneOf(("adamw_torch_fused", "adamw_torch"), f"AdamW in {_LORA}"),),
        named={
            "adafactor": "state of rows and columns alone: nearly no memory (Shazeer & Stern 2018)",
            "adamw_bnb_8bit": "state in 8 bits: a quarter of AdamW's memory (Dettmers et al. 2022)",
            "paged_adamw_8bit": "state in 8 bits, moved off the GPU where it is full (Dettmers et al. 2023)",
            "paged_adamw_32bit": "state moved off the GPU where it is full (Dettmers et al. 2023, section 3)",
            "sgd": "no state, and other learning rates: the usual ones are AdamW's",
        },
    ),
    "training.lr_scheduler_type": Advice(
        (
            OneOf(("cosine",), _GPT3, ("new",)),
            OneOf(
                ("linear", "constant", "constant_with_warmup", "cosine"),
                f"linear in {_LORA}; constant in {_QLORA}; cosine in {_GPT3}",
            ),
        ),
        named={
            "linear": "falls evenly to 0: small, settling steps at the end",
            "cosine": "stays high for longer and falls faster in the middle",
            "constant": "does not fall: a run can be made longer, and its end is noisier",
        },
    ),
    "training.adam_beta1": Advice(
        (Between(0.9, 0.9, "Kingma & Ba 2015, section 2"),),
        higher="smoother, and slower to turn",
        lower="quicker to turn, and noisier",
    ),
    "training.adam_beta2": Advice(
        (Between(0.95, 0.999, f"0.95 in {_GPT3}; 0.999 in Kingma & Ba 2015, section 2"),),
        higher="step sizes change slowly, and a sudden large gradient is met with too large a step",
        lower="step sizes follow the last gradients, which large batches and new weights need",
    ),
    "training.adam_epsilon": Advice(
        (Between(1e-8, 1e-6, "1e-8 in Kingma & Ba 2015, section 2; 1e-6 in Liu et al. 2019 (RoBERTa), table 9"),),
        higher="weights with small gradients move less",
        lower="weights with next to no gradient move as far as others",
    ),
    "training.label_smoothing_factor": Advice(
        (Between(0, 0.1, f"0 to 0.1 in {_LORA}; 0.1 in Szegedy et al. 2016, section 7"),),
        higher="less certain of each token; the training loss is no longer comparable with a loss without it",
        lower="more certain of each token",
    ),
    "training.activation_checkpointing": Advice(
        (OneOf((False,), "Transformers' TrainingArguments; true where memory is short, Chen et al. 2016"),),
        named={"true": "one more forward pass for each backward pass: slower, in far less memory"},
    ),
    "training.fsdp": Advice(
        (OneOf((False,), "Transformers' TrainingArguments; true where a model is too large for each process"),),
        named={"true": "less memory in each of several processes, and more exchange between them: slower"},
    ),
    "training.seed": Advice(
        (), named={"another": "another result by chance: runs are compared over several seeds (Dodge et al. 2020)"}
    ),
}
"""What is known of each field that means the same whatever the method is, by its dotted path."""
