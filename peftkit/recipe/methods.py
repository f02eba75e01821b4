"""The methods that a recipe can name: what each is called, the section it uses, and what is usual for it.

This is the one list of methods. Their code is in `peftkit/models/methods/`. Nothing here needs pydantic: the command
line offers the names before a recipe is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

from peftkit.recipe.advice import FIELDS, Advice, Between, Measure, OneOf

__all__ = [
    "ADVICE", "COMPARED", "KINDS", "METHODS", "Method", "Traits", "sections", "title_of", "unused_sections",
    "usual_rate",
]  # fmt: skip

Method = Literal["full", "lora", "qlora", "ia3"]


@dataclass(frozen=True)
class Traits:
    """What has to be known of a method without its code."""

    code: str  # the module of `peftkit.models.methods` that implements it
    title: str  # its name at the start of a sentence
    rates: Between  # learning rates that it is usually trained with
    rarely: tuple[float, float]  # below the first and above the second, a learning rate is rarely the best
    section: str | None = None
    """The recipe section with the settings of its adapter; None where the weights themselves are trained."""

    quantizes: bool = False  # whether the frozen base is quantised
    compared: bool = True  # whether `compare` and `plan --all-methods` include it unless asked otherwise
    advice: Mapping[str, Advice] = field(default_factory=dict)  # what is known of each field of the section
    mutable: tuple[str, ...] = ()  # fields of the section with which checkpoints still fit when they change
    drafted: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the section that a new recipe writes out, with their values; None for the default."""


_DEVLIN = "Devlin et al. 2019, appendix A.3"
_LORA = "Hu et al. 2021, table 11"
_QLORA = "Dettmers et al. 2023, appendix B.2"
_ATTENTION = "Hu et al. 2021, section 4.2"
_GROWS = "the adapter grows by these modules' whole weights"
_PEFT = "PEFT's documentation of LoraConfig"

_LORA_ADVICE: Mapping[str, Advice] = {
    "r": Advice(
        (Between(4, 64, "4 to 16 for GPT-2 medium in Hu et al. 2021, appendix H.2; 64 in Dettmers et al. 2023, B.2"),),
        higher="the adapter can learn more, and takes more memory and disk, in proportion",
        lower="a smaller adapter that can learn less; Hu et al. 2021, table 6, lose little down to 1",
    ),
    "lora_alpha": Advice(
        (Between(0.25, 8, f"16 for r 64 in {_QLORA}; 32 for r 4 in {_LORA}"),),
        higher="larger changes of the base from the same adapter, much as a higher learning rate",
        lower="smaller changes of the base, much as a lower learning rate",
        measure=Measure("lora_alpha / r", lambda recipe: recipe.lora.lora_alpha / recipe.lora.r),
    ),
    "lora_dropout": Advice(
        (Between(0, 0.1, f"0.1 in {_LORA}; 0.1 up to 13B parameters and 0.05 above in {_QLORA}"),),
        higher="less overfitting on small data, and slower learning",
        lower="faster learning, and more overfitting where data is small or seen often",
    ),
    "target_modules": Advice(
        (
            OneOf(("auto",), f"attention alone, as in {_ATTENTION}; c_attn holds key, query and value", ("lora",)),
            OneOf(("auto", "all-linear"), f"every linear layer in {_QLORA}", ("qlora",)),
        ),
        named={
            "all-linear": "every layer but the head learns: needed to match full fine-tuning in "
            "Dettmers et al. 2023, figure 2; more memory"
        },
    ),
    "bias": Advice(
        (OneOf(("none",), f"{_ATTENTION}, train no biases"),),
        named={
            "all": f"every bias learns too; the base is no longer the same with the adapter off ({_PEFT})",
            "lora_only": f"biases of the adapted layers learn too; the base changes with the adapter off ({_PEFT})",
        },
    ),
    "use_rslora": Advice(
        (OneOf((False,), _PEFT),),
        named={"true": "high ranks go on learning, which `lora_alpha / r` stops (Kalajdzievski 2023)"},
    ),
    "use_dora": Advice(
        (OneOf((False,), _PEFT),), named={"true": "better at low ranks in Liu et al. 2024; slower, with more memory"}
    ),
    "modules_to_save": Advice(
        (OneOf((None,), _PEFT),),
        named={"a list": f"as for a head; rows of new tokens alone need base.add_tokens; {_GROWS}"},
    ),
}

_OF_LORA = Traits(
    code="lora",
    title="LoRA",
    rates=Between(1e-4, 5e-4, "Hu et al. 2021, appendix D", ("lora",)),
    rarely=(5e-5, 2e-3),
    section="lora",
    advice=_LORA_ADVICE,
    mutable=("lora_alpha", "lora_dropout"),
    drafted={"r": None, "lora_alpha": None, "target_modules": None},
)

METHODS: Final[Mapping[str, Traits]] = {
    "full": Traits(
        code="full", title="Full fine-tuning", rates=Between(2e-5, 5e-5, _DEVLIN, ("full",)), rarely=(1e-6, 1e-4)
    ),
    "lora": _OF_LORA,
    "qlora": replace(
        _OF_LORA,
        title="QLoRA",
        rates=Between(1e-4, 2e-4, "Dettmers et al. 2023, appendix B", ("qlora",)),
        quantizes=True,
        drafted={**_OF_LORA.drafted, "target_modules": "all-linear"},
    ),
    "ia3": Traits(
        code="ia3",
        title="IA3",
        rates=Between(1e-3, 1e-2, "3e-3 in Liu et al. 2022, section 3.6", ("ia3",)),
        rarely=(1e-4, 3e-2),
        section="ia3",
        compared=False,
        advice={
            "target_modules": Advice(
                (OneOf(("auto",), "keys, values and feedforward layers in Liu et al. 2022, section 3.3"),),
                named={"all-linear": "more vectors, which are few numbers still"},
            ),
            "feedforward_modules": Advice(
                (OneOf(("auto",), "the inputs of the last feedforward layer in Liu et al. 2022, section 3.3"),),
                named={"[]": "every vector scales outputs"},
            ),
            "modules_to_save": Advice(
                (OneOf((None,), "PEFT's documentation of IA3Config"),),
                named={"a list": f"as for a head, or for base.add_tokens; {_GROWS}"},
            ),
        },
        drafted={"target_modules": None},
    ),
}

COMPARED: Final[tuple[Method, ...]] = tuple(method for method in get_args(Method) if METHODS[method].compared)
"""The methods that are put side by side unless asked otherwise."""

KINDS: Final = (*METHODS, "new")
"""What can be trained: each method, and every weight of a base that is made from `base.init`."""


_NEW_RATES = Between(6e-5, 6e-4, "Brown et al. 2020, table 2.1", ("new",))

ADVICE: Final[Mapping[str, Advice]] = {
    **FIELDS,
    **{f"{traits.section}.{name}": advice for traits in METHODS.values() for name, advice in traits.advice.items()},
    "training.learning_rate": Advice(
        (*(traits.rates for traits in METHODS.values()), _NEW_RATES),
        higher="faster learning, until the loss becomes unsteady or what the base knew is lost; models "
        "below 100 million parameters stand more",
        lower="steadier and slower: too low, the run ends before it has learned",
    ),
    "training.num_train_epochs": Advice(
        (Between(2, 5, f"2 to 4 in {_DEVLIN}; 3 in Taori et al. 2023; 5 in {_LORA}", tuple(METHODS)),),
        higher="more is learned of the training data, by heart too: watch the validation loss",
        lower="less time and less overfitting; small data may not be learned",
    ),
}
"""The advice on every hyperparameter, by its dotted path."""


def usual_rate(kind: str) -> Between:
    """The learning rates that are usual for what is trained."""
    return _NEW_RATES if kind == "new" else METHODS[kind].rates


def sections() -> tuple[str, ...]:
    """The recipe sections that methods have for their adapters."""
    return tuple(dict.fromkeys(traits.section for traits in METHODS.values() if traits.section))


def unused_sections(method: str) -> tuple[str, ...]:
    """The sections of a recipe that a method does not use; none for a method that is not known."""
    if method not in METHODS:
        return ()
    traits = METHODS[method]
    return (
        *(section for section in sections() if section != traits.section),
        *(() if traits.quantizes else ("quantization",)),
    )


def title_of(method: str) -> str:
    """What a method is called at the start of a sentence; its own name where it is not known."""
    return METHODS[method].title if method in METHODS else method
