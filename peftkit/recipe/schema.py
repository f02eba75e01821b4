"""What a recipe may say. Every field's docstring is its documentation, and every default lives here alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from peftkit.metrics import METRICS, in_group
from peftkit.recipe.data import Data, Format, Source
from peftkit.recipe.hyperparameters import Base, Ia3, Lora, Quantization, Training
from peftkit.recipe.methods import METHODS, Method, Traits
from peftkit.recipe.section import Positive, Section, disagree

__all__ = ["Base", "Data", "Expectation", "Format", "Generation", "Method", "Precision", "Recipe", "Source"]

Precision = Literal["auto", "fp32", "bf16", "fp16"]
if TYPE_CHECKING:
    Metric: TypeAlias = str
else:
    Metric = Literal[tuple(in_group("quality", "completions", "cost"))]


class Generation(Section):
    """How completions are written where they are measured or shown: arguments of Transformers' `GenerationConfig`."""

    max_new_tokens: Positive = 64
    """Longest completion, in tokens; the end token ends it earlier."""

    num_beams: Positive = 1
    """Continuations that are followed at the same time; 1 always takes the likeliest token. The LoRA paper uses 10 on
    E2E (Hu et al. 2021, table 11)."""

    length_penalty: float = 1.0
    """With beams, a continuation's log-likelihood is divided by its length to this power: above 1 prefers longer ones,
    below 1 shorter ones. The LoRA paper uses 0.9 on E2E."""

    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0
    """Sequences of this many tokens come once at most, the prompt's included; 0 lets them repeat. The LoRA paper uses
    4 on E2E."""

    batch_size: Positive = 16
    """Prompts that are continued together. It changes memory and speed, and never the result but by rounding."""

    samples: Annotated[int, Field(ge=0)] = 3
    """Prompts of the validation data that are continued before and after training, to be seen in the report; 0 leaves
    that out."""


class Expectation(Section):
    """A band that a metric is expected in, and who found it there; `compare` and `reproduce` check it."""

    metric: Metric
    """What is measured: a metric of the run, or of the completions that it writes."""

    low: float | None = None
    """Lowest value that is as expected. Unset: any."""

    high: float | None = None
    """Highest value that is as expected. Unset: any."""

    methods: list[Method] | None = None
    """The methods that it is said of. Unset: all."""

    source: str
    """Where the figures are from: a paper with its table, or a measurement with its machine."""

    @property
    def band(self) -> str:
        """The band, for people."""
        if self.low is None:
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"

    def distance(self, value: float) -> float:
        """How far a value is from the band: 0 in it, negative below it, positive above it."""
        if self.low is not None and value < self.low:
            return value - self.low
        return value - self.high if self.high is not None and value > self.high else 0.0

    @model_validator(mode="after")
    def _is_a_band(self) -> Expectation:
        if self.low is None and self.high is None:
            raise ValueError("Give low, high or both.")
        if self.low is not None and self.high is not None and self.low > self.high:
            disagree(("high", f"is {self.high:g}, below low {self.low:g}. Change one of them."))
        return self


class Recipe(Section):
    """One fine-tuning run, complete."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run: letters, digits, dots, dashes and underscores."""

    description: str | None = None
    """One line that says what the recipe is for; `peftkit recipes list` shows it."""

    method: Method = "lora"
    """`full` trains every weight, `lora` adapters on a full-precision base, `qlora` adapters on a quantised one, `ia3`
    vectors that scale what layers of a full-precision base compute."""

    base: Base
    """The model that training starts from."""

    lora: Lora = Lora()
    """The adapter, for `lora` and `qlora`: arguments of PEFT's `LoraConfig`."""

    ia3: Ia3 = Ia3()
    """The vectors, for `ia3`."""

    quantization: Quantization = Quantization()
    """The quantised base, for `qlora`: arguments of Transformers' `BitsAndBytesConfig`."""

    data: Data
    """What the model is trained on."""

    training: Training = Training()
    """Hyperparameters, the same for all methods: arguments of Transformers' `TrainingArguments`."""

    precision: Precision = "auto"
    """Dtype of the matmuls while training. `auto`: bf16 where the GPU has it, fp16 on older GPUs, fp32 on
    Apple's GPUs and on a CPU. Trained weights are kept in fp32 whatever this says."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do with a step whose loss or gradient is no finite number: `stop` the run and name the rows, or `skip`
    the step, with a warning and a count. In fp16, steps that only overflow are left out by the scaler either way."""

    generation: Generation = Generation()
    """How completions are written where they are measured or shown. It has no part in training."""

    expect: list[Expectation] = Field(default_factory=list)
    """What the result should be, and who found it so: each a `metric` with a band from `low` to `high` and a `source`.
    `compare` and `reproduce` check it."""

    methods: dict[Method, dict[str, object]] = Field(default_factory=dict)
    """Differences that one method needs, as `full: {training: {learning_rate: 1e-5}}`. By default there are none."""

    output: str | None = None
    """The run folder, relative to the working directory. Unset: `runs/` and the recipe's name."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Recipe:
        found: list[tuple[str, str]] = []
        if self.base.init and self.trains_adapter:
            found.append(("base.init", "makes a new base, which only method: full can train. Use it, or base.model."))
        if self.training.eval_strategy != "no" and self.data.validation is None:
            found.append(("training.eval_strategy", "needs data.validation. Add it, or set eval_strategy: no."))
        if self.data.streaming and self.training.max_steps <= 0:
            found.append(("data.streaming", "needs training.max_steps: a stream does not say where it ends. Set it."))
        if self.data.streaming and getattr(self.training, "dataloader_num_workers", False):
            remedy = "Leave it out: the stream tokenises in processes of its own."
            found.append(("training.dataloader_num_workers", f"would read the stream once for each worker. {remedy}"))
        if self.base.init and self.data.max_length > self.base.init.n_positions:
            seen = self.base.init.n_positions
            found.append(("data.max_length", f"is more than base.init.n_positions, {seen}. Change one of them."))
        found += self._unmeasurable()
        disagree(*found)
        return self

    def _unmeasurable(self) -> list[tuple[str, str]]:
        """The expectations of what cannot be measured, and why."""
        found: list[tuple[str, str]] = []
        for number, expected in enumerate(self.expect):
            group = METRICS[expected.metric].group
            if group in ("quality", "completions") and self.data.validation is None:
                found.append((f"expect.{number}.metric", "needs data.validation to be measured on. Add it."))
            elif group == "completions" and not self.data.may_have_prompts:
                what = f"needs completions, which format: {self.data.format} has not. Expect perplexity."
                found.append((f"expect.{number}.metric", what))
        return found

    @property
    def trains_adapter(self) -> bool:
        """Whether the run ends in an adapter rather than a whole model."""
        return self.traits.section is not None

    @property
    def traits(self) -> Traits:
        """What has to be known of the method."""
        return METHODS[self.method]

    @property
    def adapter(self) -> Any:
        """The section with the settings of the adapter; None where the weights themselves are trained."""
        return getattr(self, self.traits.section) if self.traits.section else None

    @property
    def base_quantization(self) -> Quantization | None:
        """How the base is quantised while training; None where it is not."""
        return self.quantization if self.traits.quantizes else None
