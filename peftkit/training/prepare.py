"""A run before its first step: its machine, base and data are examined, and nothing is written."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from time import time
from typing import Any

from peftkit import console
from peftkit.data.audit import Audit, audit, check
from peftkit.data.prepare import RunData, prepare, texts
from peftkit.errors import FieldError, InputError, RecipeError, printable
from peftkit.models.attach import count_parameters
from peftkit.models.attention import use_attention
from peftkit.models.base import locate_base
from peftkit.models.device import LiveModel, detect_hardware
from peftkit.models.start import Start, new_start, pretrained_start, with_new_tokens
from peftkit.planning.decisions import ChosenPrecision, Dtype, choose_base_dtype, choose_precision, decide
from peftkit.planning.hardware import Hardware
from peftkit.planning.processes import check_machine, check_recipe, check_sharding, is_sharded
from peftkit.recipe.libraries import check_installed
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.schema import Recipe
from peftkit.runs.differences import Inputs
from peftkit.runs.folder import Checkpoint, RunFolder
from peftkit.runs.manifest import RunManifest
from peftkit.runs.versions import installed_versions
from peftkit.storage import sha256_of_json
from peftkit.training.processes import ALONE, NEVER, Processes, StopRequest
from peftkit.training.weights import check_types

__all__ = ["Run", "audit_recipe", "load_isolated", "prepare_run"]


@dataclass
class Run:
    """One run: what it does, on what, where, and what is recorded of it.

    Every step of a run reads it and returns what it finds out. Only `peftkit.training.run` assigns to it, between the
    steps.
    """

    file: RecipeFile
    folder: RunFolder
    processes: Processes
    hardware: Hardware
    precision: ChosenPrecision
    base_dtype: Dtype
    start: Start
    data: RunData
    data_warnings: list[str]
    """What the audit of the data warns of."""

    stop: StopRequest = NEVER
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))
    checkpoint: Checkpoint | None = None
    """Where training resumes; None to start from the first step."""

    adopt: bool = False
    """Whether the optimizer gets the recipe's hyperparameters rather than those of the checkpoint."""

    @property
    def recipe(self) -> Recipe:
        """What the run does."""
        return self.file.recipe

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights."""
        return is_sharded(self.recipe, self.processes.count)

    @property
    def output(self) -> Path:
        """Where the adapter or the model is saved."""
        return self.folder.adapter if self.recipe.trains_adapter else self.folder.model

    @cached_property
    def manifest(self) -> RunManifest:
        """The record of the run; asking for it the first time hashes the base."""
        return RunManifest(
            name=self.recipe.name,
            method=self.recipe.method,
            recipe_sha256=sha256_of_json(self.recipe.model_dump(mode="json")),
            base=self.start.record(),
            data=self.data_record(),
            versions=installed_versions(),
            hardware=self.hardware.record(),
            precision=self.precision,
            world_size=self.processes.count,
            run_id=self.run_id,
            warnings=list(self.data_warnings),
        )

    @cached_property
    def inputs(self) -> Inputs:
        """The files that must not change during the run, as they were when this was asked for the first time."""
        located = self.start.located
        return Inputs.of(self.start.record(), located.folder if located else None, self.data_record())

    def data_record(self) -> dict[str, Any]:
        """The manifest's entry on the data; of a stream, more is known after training."""
        return {
            "train": self.data.train.record(),
            "validation": self.data.validation.record() if self.data.validation else None,
        }

    def warn(self, message: str) -> None:
        """Print a warning, and record it in the manifest, which the main process writes."""
        console.warning(message)
        if self.processes.is_main:
            self.manifest.warnings.append(message)

    def told_to_stop(self) -> int | None:
        """The signal that has come to any of the processes: all of them stop after the same step."""
        return int(self.processes.largest(self.stop.number or 0)) or None

    def load(self) -> Any:
        """The model with its weights, ready to train.

        Raises:
            MemoryRunError: it does not fit into memory.
        """
        # sharded weights need not fit on a device as a whole
        device = "cpu" if self.is_sharded else self.processes.device(self.hardware)
        details, place = "", self.hardware.name
        with self.file.locating():
            model = self.start.load(self.recipe, self.base_dtype, device)
            if self.is_sharded:
                check_types(model)
            if self.data.train.packed:
                details = f", {use_attention(model, self.hardware, self.base_dtype, self.precision)}"
        if self.processes.are_many:
            sharing = " that share the weights" if self.is_sharded else ""
            place = f"{self.processes.count} processes{sharing} on {place}"
        trainable, total = count_parameters(model)
        trained = f"{trainable:,} of {total:,} parameters are trained"
        console.info(f"{self.recipe.method} on {place} in {self.precision}{details}: {trained}")
        return model


def prepare_run(file: RecipeFile, processes: Processes = ALONE, *, elsewhere: Hardware | None = None) -> Run:
    """Examine the machine, the base's structure and the data; nothing is written.

    Of several processes, one on each machine tokenises the data, and the others find it in the cache. `elsewhere` is a
    machine that is not here, to plan for.

    Raises:
        InputError: recipe, base or data are wrong.
    """
    recipe = file.recipe
    with file.locating(), processes.first_on_machine("data"):
        hardware = elsewhere or detect_hardware()
        check_installed(recipe)
        check_machine(processes, hardware)
        check_recipe(recipe, processes.count)
        decide(hardware, recipe)  # what this machine cannot do is refused here, at its line of the recipe
        precision = choose_precision(recipe.precision, hardware).choice
        check_sharding(recipe, processes.count, precision)
        base_dtype = choose_base_dtype(recipe.base.dtype, recipe.method, precision).choice
        init = recipe.base.init
        start = pretrained_start(recipe) if init is None else new_start(recipe, init, texts(recipe.data))
        if start.new_rows:
            console.info(_new_tokens(start))
        moment = datetime.fromtimestamp(processes.agreed("time", int(time())))
        data = prepare(recipe.data.model_copy(update={"time": recipe.data.time or moment}), start.tokenizer)
        console.info(f"train: {data.train.summary()}")
        _check_vocabulary(data, start)
        warnings = check(data, recipe.data)
        for message in warnings:
            console.warning(message)
        settled = _settled(file, data, start)
    folder = RunFolder(file.output)
    return Run(settled, folder, processes, hardware, precision, base_dtype, start, data, warnings)


def load_isolated(run: Run, again: Callable[[RecipeFile], Run]) -> tuple[Run, LiveModel]:
    """A run with its model: one with a document in each row where the architecture lets packed ones see each other.

    `again` prepares it by that recipe.

    Raises:
        RecipeError: such an architecture, and the recipe sets packing itself.
        MemoryRunError: the model does not fit into memory.
    """
    try:
        return run, LiveModel(run.load())
    except RecipeError as error:
        if run.recipe.data.packing is not None or [each.field for each in error.problems] != ["data.packing"]:
            raise
        reason = error.problems[0].what
    console.info(f"{reason} The recipe does not set data.packing, so each row has one document.")
    run = again(run.file.with_data({"packing": False}))
    return run, LiveModel(run.load())


def audit_recipe(file: RecipeFile, *, show: int, tokens: bool = False) -> tuple[Audit, list[str], InputError | None]:
    """Audit what a recipe trains and validates on, with the tokenizer of its base and without the weights.

    Returns:
        The figures, with `show` documents, and with `tokens` their tokens one by one; the warnings; and why training
        would not start, if so.

    Raises:
        InputError: base or data cannot be read.
    """
    recipe = file.recipe
    with file.locating():
        if recipe.base.init is None:
            tokenizer, _ = with_new_tokens(recipe.base, locate_base(recipe.base, weights=False))
        else:
            tokenizer = new_start(recipe, recipe.base.init, texts(recipe.data)).tokenizer
        data = prepare(recipe.data, tokenizer)
        found = audit(data, tokenizer, recipe.training.per_device_train_batch_size, show=show, tokens=tokens)
    try:
        with file.locating():
            return found, check(data, recipe.data), None
    except InputError as fault:
        return found, [], fault


def _new_tokens(start: Start) -> str:
    """What becomes of the recipe's new tokens, in a line."""
    names = [str(printable(start.tokenizer.convert_ids_to_tokens(row) or "?")) for row in start.new_rows]
    had = start.config.get_text_config().vocab_size
    grown = f"the embedding grows from {had:,} to {start.vocabulary:,} rows" if start.vocabulary > had else None
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
    return f"new tokens, whose rows are trained: {listed}; {grown or 'the embedding has rows for them'}."


def _check_vocabulary(data: RunData, start: Start) -> None:
    """See that the base's embedding has a row for each token of the data; of a stream, of its first window.

    Raises:
        FieldError: it has not, as where tokens were added to the tokenizer alone.
    """
    rows = start.vocabulary
    for prepared in (data.train, data.validation):
        parts = prepared.parts if prepared else []
        largest = max((part.corpus.reading.largest_token for part in parts if len(part.chosen)), default=0)
        if largest >= rows:
            name = printable(start.tokenizer.convert_ids_to_tokens(largest))
            what = f"its embedding has {rows:,} rows, and the data has the token {name}, number {largest:,}."
            remedy = "Name the token in base.add_tokens, which gives it a row that is trained, or change data.template."
            raise FieldError("base.model", what, remedy=remedy)


def _settled(file: RecipeFile, data: RunData, start: Start) -> RecipeFile:
    """The recipe with the recognised format, and the time where a template writes it, which are printed.

    A tokenizer without a chat template gets the one that conversations are trained with, to be saved with it.
    """
    for source, part in zip(file.recipe.data.train_sources, data.train.parts, strict=False):  # of a stream, the first
        form = part.corpus.form
        if form.has_chat_template:
            template = file.recipe.data.of(source).template
            start.tokenizer.chat_template = form.choose_template(template, start.tokenizer)
            break
    if data.train.time and file.recipe.data.time is None:
        console.info(f"the chat template writes the time: in this run it is {data.train.time:%Y-%m-%d %H:%M:%S}.")
        file = file.with_data({"time": data.train.time})
    if file.recipe.data.format != "auto":
        return file
    for part in data.train.parts:
        reading = part.corpus.reading
        console.info(f"{part.corpus.name} has the format {reading.format}: {reading.why}.")
    return file.with_data({"format": data.train.formats[0]}) if len(data.train.formats) == 1 else file
