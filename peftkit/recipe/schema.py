"""What a recipe may say. Every field's docstring is its documentation, and every default lives here alone."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from peftkit.data.formats import AUTO, FORMATS
from peftkit.metrics import METRICS, in_group
from peftkit.recipe.hyperparameters import Base, Generation, Ia3, Lora, Quantization, Training
from peftkit.recipe.methods import METHODS, Method, Traits
from peftkit.recipe.section import Positive, Section, disagree

__all__ = ["Base", "Data", "Expectation", "Format", "Method", "Precision", "Recipe", "Source"]

Precision = Literal["auto", "fp32", "bf16", "fp16"]
if TYPE_CHECKING:
    Format: TypeAlias = str
    Metric: TypeAlias = str
else:
    Format = Literal[(AUTO, *FORMATS)]
    Metric = Literal[tuple(in_group("quality", "completions", "cost"))]


class Source(Section):
    """Where rows come from: files, or a data set of the hub."""

    path: str | list[str] | None = None
    """File or files: .txt, .jsonl, .ndjson, .json, .csv, .tsv or .parquet, perhaps with .gz, .bz2, .xz or .zst after
    that; relative to the recipe's folder."""

    dataset: str | None = None
    """Hub name of a data set (`wikitext`), or `builtin:grammar`, the small world that peftkit writes itself."""

    name: str | None = None
    """Configuration of the data set (`wikitext-2-raw-v1`)."""

    split: str | None = None
    """Split of the data set: train, validation or test. Slices such as `train[:1000]` work."""

    revision: str | None = None
    """Commit, tag or branch of a hub data set."""

    limit: Positive | None = None
    """Take only the first rows."""

    weight: Annotated[float, Field(gt=0)] | None = None
    """Where there are several sources: this one's share of an epoch's documents, relative to the others' weights. Of a
    source that has more, some are drawn by `data.seed`; those of one that has fewer come again."""

    format: Format | None = None
    """What the rows of this source are, where it differs from `data.format`. A source that has any of `format`,
    `columns` and `template` is read by its own columns and template, and not by those of `data`."""

    columns: dict[str, str] | None = None
    """Other names of the format's columns in this source."""

    template: str | None = None
    """How a row of this source becomes the prompt."""

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("Give exactly one of path and dataset.")
        if self.path == []:
            disagree(("path", "names no file. Give one, or a list of some."))
        stray = [field for field in ("name", "split", "revision") if self.path and getattr(self, field)]
        disagree(*((field, "cannot act on files; it belongs to a dataset. Remove it.") for field in stray))
        return self


_FORMAT = " ".join(f"`{name}`: {form.summary}." for name, form in FORMATS.items())
_FORMAT += f" `{AUTO}`: recognised from the columns, for each source."


class Data(Section):
    """What the model is trained on, and which tokens are in the loss."""

    train: Source | list[Source]
    """Rows to train on: one source, or a list of several, which are mixed by their weights if they have any."""

    validation: Annotated[float, Field(gt=0, lt=1)] | Source | list[Source] | None = None
    """Rows held out to measure on: sources, or a share such as `0.05` of the training documents, drawn by `seed` so
    that equal documents stay together. Without them there is no evaluation."""

    format: Annotated[Format, Field(description=_FORMAT)] = AUTO

    columns: dict[str, str] = Field(default_factory=dict)
    """Other names of the format's columns in your files, as `prompt: question`."""

    template: str | None = None
    """How a row becomes the prompt; names in braces are the format's columns. Unset: `{prompt}` for completion, and
    the template of Stanford Alpaca (Taori et al. 2023) for instruction. For chat, a Jinja template of the whole
    conversation; unset: the tokenizer's own, or where it has none a plain one of `### User:` and `### Assistant:`."""

    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Whose words are in the loss: the assistant's in every turn, in the `last` turn alone, or `all` of a row with its
    prompt. A turn that has the weight 0 itself never is."""

    system: Literal["keep", "merge"] = "keep"
    """What becomes of a conversation's system turn: `merge` puts it before the user's first words, for templates that
    know no system."""

    time: datetime | None = None
    """The time that a chat template which writes it is given, as `2026-11-27T09:30:00`. Unset: that of the run's start,
    which the run's own recipe has, so that resuming and reproducing it give the same documents."""

    ignore_columns: list[str] = Field(default_factory=list)
    """Columns of your files that are not to be used. Ids, names, dates and the like are left out without it, and
    counted; any other column that the format does not use is an error."""

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """What separates the values of a .csv file. Unset: found in the heading; a tab in a .tsv file."""

    labels: dict[int | str, str] = Field(default_factory=dict)
    """Words for the completions that your rows have as numbers, as `{0: negative, 1: positive}`."""

    sample_by: Literal["line", "paragraph", "document"] = "line"
    """What one document is in a .txt file: a line, a paragraph between empty lines, or the whole file."""

    on_bad_rows: Literal["error", "skip"] = "error"
    """What happens when rows cannot be used, as bad JSON or an empty field: `error` stops and lists them, `skip` leaves
    them out and counts them."""

    max_length: Annotated[int, Field(ge=2)] = 512
    """Longest sequence in tokens, the end token included; at most what the base can see."""

    truncation: Literal["split", "cut", "error"] | None = None
    """What happens to a document longer than `max_length`: `split` continues in a further sequence and loses nothing,
    `cut` drops the rest and counts it, `error` stops. Unset: split for text, cut for the other formats."""

    packing: bool | None = None
    """Put several documents into one sequence, isolated from each other, so that no step is spent on padding. Unset:
    true for text, false for the other formats."""

    max_leaked: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest share of the validation tokens that may be in documents which are trained on too; more is an error.
    Unset: 0.1 for text, whose short lines repeat by nature, and 0 for the other formats."""

    streaming: bool = False
    """Read and tokenise the training rows while training, without a copy on the disk: for data that is larger than it.
    Needs `training.max_steps`; rows are shuffled within a window only."""

    seed: Annotated[int, Field(ge=0)] = 42
    """Draws the validation share and a mixture's documents. It is not the seed of training, so that runs with other
    seeds are measured on the same rows."""

    @property
    def train_sources(self) -> list[Source]:
        """The sources of the training rows."""
        return _as_list(self.train)

    @property
    def validation_sources(self) -> list[Source]:
        """The sources of the validation rows; none where these are a share of the training rows."""
        return _as_list(self.validation)

    @property
    def may_have_prompts(self) -> bool:
        """Whether rows have completions, as far as that is known before they are read."""
        return self.format == AUTO or FORMATS[self.format].has_prompt

    def of(self, source: Source) -> Data:
        """The same, with what one source says itself of its rows."""
        if source.format is None and source.columns is None and source.template is None:
            return self
        own = {"format": source.format or self.format, "columns": source.columns or {}, "template": source.template}
        return self.model_copy(update=own)

    def _misread(self) -> list[tuple[str, str]]:
        """The fields that cannot act on the format, and why."""
        found: list[tuple[str, str]] = []
        forms = [form for name, form in FORMATS.items() if self.format in (AUTO, name)]
        if self.template is not None and not self.may_have_prompts:
            found.append(("template", f"cannot act on format: {self.format}, which has no prompt. Remove it."))
        known = [name for form in forms for name in form.columns]
        strange = sorted(set(self.columns) - set(known))
        if strange:
            has = f"format: {self.format} has not" if self.format != AUTO else "no format has"
            found.append(("columns", f"names {', '.join(strange)}, which {has}. Use {', '.join(known)}."))
        return found

    @model_validator(mode="after")
    def _format_agrees(self) -> Data:
        found = self._misread()
        for name, sources in (("train", self.train_sources), ("validation", self.validation_sources)):
            own = [self.of(source) for source in sources]
            found += [(name, f"{field} {what}") for data in own if data is not self for field, what in data._misread()]
        if self.truncation == "split" and self.format != AUTO and not FORMATS[self.format].is_plain_text:
            found.append(("truncation", "split would cut a prompt from its completion. Use cut or error."))
        disagree(*found)
        return self

    @model_validator(mode="after")
    def _sources_agree(self) -> Data:
        found: list[tuple[str, str]] = []
        for name, sources in (("train", self.train), ("validation", self.validation)):
            weighted = [source.weight is not None for source in _as_list(sources)]
            if sources == []:
                found.append((name, "names no source. Give one, or a list of some."))
            elif any(weighted) and (len(weighted) == 1 or not all(weighted)):
                found.append((name, "has a weight that nothing is weighed against. Give all of several one, or none."))
        if self.streaming and isinstance(self.validation, float):
            found.append(("validation", "cannot be a share of rows that are streamed. Name a source, or a split."))
        if self.streaming and any(source.weight for source in self.train_sources):
            found.append(("streaming", "cannot weigh sources whose size it does not know. Remove it, or the weights."))
        disagree(*found)
        return self


def _as_list(sources: Source | list[Source] | float | None) -> list[Source]:
    if isinstance(sources, Source):
        return [sources]
    return sources if isinstance(sources, list) else []


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
