"""The section `data` of a recipe."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from peftkit.data.formats import AUTO, FORMATS
from peftkit.recipe.section import Positive, Section, disagree

__all__ = ["Data", "Format", "Source"]

if TYPE_CHECKING:
    Format: TypeAlias = str
else:
    Format = Literal[(AUTO, *FORMATS)]


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

    time: Annotated[datetime, Field(strict=False)] | None = None
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
    true for text, false for the other formats and for architectures that let such documents see each other."""

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
