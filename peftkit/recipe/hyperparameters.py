"""The sections on the model and how it is trained: arguments of the libraries, and the base."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from peftkit.errors import nearest
from peftkit.recipe.libraries import BITSANDBYTES_CONFIG, LORA_CONFIG, OPTIMIZERS, SCHEDULERS, TRAINING_ARGUMENTS
from peftkit.recipe.names import LORA_INITS_BEYOND, QUANTIZATION_WIDTHS
from peftkit.recipe.quantizers import QUANTIZERS
from peftkit.recipe.section import LibrarySection, Positive, Section, disagree

__all__ = ["Base", "Ia3", "Init", "Lora", "NewToken", "Quantization", "Training"]

Share = Annotated[float, Field(ge=0, lt=1)]
Interval = Literal["no", "steps", "epoch"]


def _one_of(name: str, valid: tuple[str, ...], what: str = "Transformers' names") -> str:
    """Check a value against the names that there are."""
    if name not in valid:
        guess = nearest(name, valid)
        hint = f"Did you mean {guess}?" if guess else f"There are: {', '.join(valid)}."
        raise ValueError(f"{name!r} is not one of {what}. {hint}")
    return name


Optimizer = Annotated[str, AfterValidator(lambda name: _one_of(name, OPTIMIZERS.values()))]
Scheduler = Annotated[str, AfterValidator(lambda name: _one_of(name, SCHEDULERS.values()))]
Quantizer = Annotated[str, AfterValidator(lambda name: _one_of(name, tuple(QUANTIZERS), "the libraries' names"))]
_MEASURED = ("loss", "perplexity")
"""What an evaluation measures; less is better of both."""

_FULL_SHARD = ("full_shard", "full_shard auto_wrap")
"""What Transformers has called it."""


def _is_sharded(value: Any) -> Any:
    """True for each way in which Transformers takes full sharding."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = " ".join(value)
    if value in _FULL_SHARD:
        return True
    raise ValueError("can only be true or full_shard: all of weights, gradients and optimizer state is sharded.")


_SHARDED: Any = bool | Literal[_FULL_SHARD] | list[str] | None
Sharded = Annotated[bool, BeforeValidator(_is_sharded, json_schema_input_type=_SHARDED)]


class Training(LibrarySection):
    """Hyperparameters. Beside these, every other argument of `TrainingArguments` may be set by its name."""

    library = TRAINING_ARGUMENTS

    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """Size of an optimizer step, at its highest: the warm-up leads up to it, the schedule down from it."""

    per_device_train_batch_size: Positive = 8
    """Sequences in one forward pass. Times `gradient_accumulation_steps`, it is the batch that one optimizer step sees,
    which several processes share."""

    per_device_eval_batch_size: Positive = 8
    """Sequences in one evaluation pass of each process. It changes memory and speed, never the result."""

    gradient_accumulation_steps: Positive = 1
    """Forward passes whose gradients are summed before one optimizer step: a larger batch in the same memory."""

    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    """Times the whole training set is seen."""

    max_steps: int = -1
    """Optimizer steps to take, instead of counting epochs; -1 leaves it to `num_train_epochs`."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of each weight taken off per step, times the learning rate (Loshchilov & Hutter 2019); biases and layer
    norms are spared."""

    warmup_steps: Annotated[float, Field(ge=0)] = 0
    """Steps in which the learning rate rises from 0; below 1 it is a share of all steps."""

    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradient clipping: a gradient whose norm over all trained weights is larger is scaled down to it (Pascanu et
    al. 2013); 0 turns it off."""

    optim: Optimizer = "adamw_torch_fused"
    """Optimizer, by Transformers' name: `adamw_torch_fused` (AdamW, Loshchilov & Hutter 2019, as one kernel),
    `adamw_torch` (the same in more steps), or any other that Transformers has."""

    lr_scheduler_type: Scheduler = "linear"
    """How the learning rate falls after the warm-up, by Transformers' name."""

    adam_beta1: Share = 0.9
    """Memory of AdamW's mean of the gradients."""

    adam_beta2: Share = 0.999
    """Memory of AdamW's mean of the squared gradients."""

    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Keeps AdamW's division finite."""

    label_smoothing_factor: Share = 0.0
    """Probability taken from the right token and spread over all (Szegedy et al. 2016). Evaluation does
    not smooth."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Start of every random choice: new weights, adapters, dropout and the order of the data."""

    logging_steps: Annotated[float, Field(gt=0)] = 10
    """Steps between two lines of metrics; below 1 it is a share of all steps."""

    eval_strategy: Interval = "no"
    """When to evaluate on `data.validation`: never, every `eval_steps`, or after each epoch."""

    save_strategy: Interval = "epoch"
    """When to write a checkpoint: never, every `save_steps`, or after each epoch."""

    save_total_limit: Positive | None = 2
    """Checkpoints to keep, the newest ones; null keeps all."""

    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them (Chen et al. 2016)."""

    fsdp: Sharded = False
    """Spread weights, gradients and optimizer state over the processes of a run, each of which then holds a part (FSDP,
    Zhao et al. 2023): for a model that is too large for each of them, with `full` or `lora`. `full_shard` says the
    same. A run of one process is as it is without."""

    @property
    def effective_batch(self) -> int:
        """Sequences that one optimizer step sees, of however many processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @model_validator(mode="after")
    def _steps_are_counted(self) -> Training:
        if self.max_steps != -1 and self.max_steps < 1:
            disagree(("max_steps", f"is {self.max_steps}, but must be a number of steps, or -1 to count epochs."))
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Training:
        extras = self.model_extra or {}
        strategies = {self.eval_strategy, self.save_strategy}
        if extras.get("load_best_model_at_end") and (len(strategies) > 1 or "no" in strategies):
            remedy = "Set both to steps, or both to epoch."
            disagree(("load_best_model_at_end", f"needs eval_strategy and save_strategy to be the same. {remedy}"))
        metric = extras.get("metric_for_best_model")
        if metric is not None and metric.removeprefix("eval_") not in _MEASURED:
            what = f"{metric!r} is not measured. Use {' or '.join(_MEASURED)}."
            disagree(("metric_for_best_model", what))
        return self


class Init(Section):
    """The shape of a new GPT-2, made with random weights instead of loading a pretrained base."""

    n_layer: Positive = 12
    """Layers: transformer blocks stacked on each other."""

    n_head: Positive = 12
    """Attention heads in each layer; `n_embd` must be a multiple of it."""

    n_embd: Positive = 768
    """Hidden size: the width of the vectors that run through the model."""

    vocab_size: Positive = 50257
    """Tokens the model knows. A byte-level BPE tokenizer of this size is trained on the training text, so at least
    258: the 256 bytes, the end of text and the padding."""

    n_positions: Positive = 1024
    """Longest sequence, in tokens, that the model can see."""

    tokenizer: str | None = None
    """Hub name or folder of a tokenizer to use instead of training one; `vocab_size` must have room for it."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Init:
        if self.n_embd % self.n_head:
            disagree(("n_embd", f"{self.n_embd} is not a multiple of n_head {self.n_head}. Change one of them."))
        return self


class NewToken(Section):
    """A token that the base's tokenizer does not have, with how it is read back."""

    token: str
    """The text that becomes one token, wherever it is in the data."""

    special: bool = False
    """Whether the token is markup, which is left out where ids are made text again (`skip_special_tokens`), as the end
    of text is. A token that generated text must show, as `<tool>`, is not special."""


class Base(Section):
    """The model that training starts from."""

    model: str | None = None
    """Hub name (`gpt2`), a folder in the Transformers format, or `builtin:tiny-gpt2`, which is part of peftkit."""

    revision: str | None = None
    """Commit, tag or branch of a hub model. A commit's hash is the only name that never moves."""

    init: Init | None = None
    """Make a new GPT-2 of this shape instead of loading one. Only `method: full` can train it."""

    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Probability with which values are dropped after embeddings, attention and each block while training. Unset:
    the base's own."""

    add_tokens: list[str | NewToken] = Field(default_factory=list)
    """Tokens that the base does not have, as `["<tool>", {token: "<end>", special: true}]`. The tokenizer gets them,
    and the embedding a row for each, which is trained and saved. A token that the tokenizer has may be named if the
    embedding has no row for it. Rows begin as the mean of all others (Hewitt 2021)."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the frozen weights of the base. `auto`: bfloat16 on a GPU that computes in it and
    float32 elsewhere. Weights that are trained are always float32."""

    @model_validator(mode="after")
    def _one_origin(self) -> Base:
        if (self.model is None) == (self.init is None):
            raise ValueError("Give exactly one of model and init.")
        if self.init and self.revision:
            disagree(("revision", "belongs to a hub model; a base made from init has none. Remove it."))
        if self.init and self.add_tokens:
            disagree(
                ("add_tokens", "adds to the tokenizer of base.model, and a base made from init has none. Remove it.")
            )
        names = [each.token for each in self.new_tokens]
        empty = [(f"add_tokens.{number}", "is empty. Remove it.") for number, name in enumerate(names) if not name]
        again = [number for number, name in enumerate(names) if name and name in names[:number]]
        disagree(
            *empty, *((f"add_tokens.{number}", f"{names[number]!r} is there twice. Remove one.") for number in again)
        )
        return self

    @property
    def new_tokens(self) -> list[NewToken]:
        """The tokens of `add_tokens`, each in its long form."""
        return [NewToken(token=each) if isinstance(each, str) else each for each in self.add_tokens]


class Lora(LibrarySection):
    """The adapter (Hu et al. 2021). Beside these, every other argument of PEFT's `LoraConfig` may be set by name."""

    library = LORA_CONFIG

    r: Positive = 8
    """Rank: the width of the two small matrices that stand for the change of a weight."""

    lora_alpha: Annotated[float, Field(gt=0)] = 16
    """Scale: the change is multiplied by `lora_alpha / r`, or by `lora_alpha / sqrt(r)` with `use_rslora`."""

    lora_dropout: Share = 0.05
    """Probability with which an adapter's inputs are dropped while training."""

    target_modules: str | list[str] = "auto"
    """Layers that get an adapter: `auto` (the attention's input projections: `c_attn` for GPT-2), `all-linear`
    (every layer but the head), a list of names, or one regular expression over whole module names."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases that are trained with the adapter."""

    use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(r)` (Kalajdzievski 2023)."""

    use_dora: bool = False
    """Learn a weight's size apart from its direction (Liu et al. 2024)."""

    modules_to_save: list[str] | None = None
    """Modules trained whole, and saved with the adapter."""

    @model_validator(mode="after")
    def _leaves_the_base_alone(self) -> Lora:
        extras = self.model_extra or {}
        if extras.get("layers_pattern") and extras.get("layers_to_transform") is None:
            disagree(("layers_pattern", "says where the number of a layer is: it needs layers_to_transform. Set both."))
        initial = extras.get("init_lora_weights")
        if initial == "eva":
            what = "eva begins from activations on the data, which peftkit does not collect."
            disagree(("init_lora_weights", f"{what} Use true, gaussian or orthogonal."))
        if isinstance(initial, str) and initial.startswith(LORA_INITS_BEYOND):
            what = f"{initial} changes the base's weights, which an adapter alone does not carry."
            disagree(("init_lora_weights", f"{what} Use true, gaussian or orthogonal."))
        return self


class Ia3(Section):
    """The adapter of `method: ia3` (Liu et al. 2022): a vector for each module, which scales what it computes."""

    target_modules: str | list[str] = "auto"
    """Layers that get a vector: `auto` (what PEFT names for the model: `c_attn` and `mlp.c_proj` for GPT-2, `k_proj`,
    `v_proj` and `down_proj` for Llama), `all-linear` (every layer but the head), a list of names, or one regular
    expression over whole module names."""

    feedforward_modules: Literal["auto"] | list[str] = "auto"
    """Those of the layers whose inputs are scaled, and not their outputs: `auto` (the last layer of each feedforward
    block), or a list of names."""

    modules_to_save: list[str] | None = None
    """Modules trained whole, and saved with the vectors."""


class Quantization(LibrarySection):
    """How the base is quantised. Beside these, other arguments of `BitsAndBytesConfig` may be set by name."""

    library = BITSANDBYTES_CONFIG

    backend: Quantizer = "bitsandbytes"
    """Library that quantises. `bitsandbytes` is always there; another one is installed by the extra of its name, and
    takes no other arguments than `load_in_4bit` and `load_in_8bit`."""

    load_in_4bit: bool | None = None
    """Hold the base's linear layers in 4 bits. Unset: true unless `load_in_8bit` is."""

    load_in_8bit: bool = False
    """Hold the base's linear layers in 8 bits (LLM.int8(), Dettmers et al. 2022)."""

    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit numbers: `nf4`, made for normally distributed weights (Dettmers et al. 2023), or `fp4`."""

    bnb_4bit_use_double_quant: bool = True
    """Quantise the scales of the 4-bit numbers too (Dettmers et al. 2023)."""

    @model_validator(mode="before")
    @classmethod
    def _choose_width(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("load_in_4bit") is None:
            return {**value, "load_in_4bit": not value.get("load_in_8bit", False)}
        return value

    @model_validator(mode="after")
    def _one_width(self) -> Quantization:
        if self.load_in_4bit == self.load_in_8bit:
            raise ValueError("Set exactly one of load_in_4bit and load_in_8bit.")
        width, widths = 8 if self.load_in_8bit else 4, QUANTIZERS[self.backend].widths
        if width not in widths:
            what = f"{self.backend} cannot: it holds weights in {' or '.join(map(str, widths))} bits."
            disagree((f"load_in_{width}bit", f"{what} Set load_in_{widths[0]}bit: true."))
        if self.model_extra and self.backend != "bitsandbytes":
            what = f"is bitsandbytes' own, and {self.backend} does not take it. Remove it."
            disagree(*((name, what) for name in sorted(self.model_extra)))
        of_another = [name for name in self.model_extra or {} if QUANTIZATION_WIDTHS.get(name, width) != width]
        disagree(*((name, f"has no effect on weights in {width} bits. Remove it.") for name in sorted(of_another)))
        return self
