"""What a run needs before its folder is touched: a recipe that was checked, a base, data, and a machine to do it on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from peftkit import console
from peftkit.data.audit import check
from peftkit.data.chat import chat_template
from peftkit.data.prepare import RunData, prepare, texts
from peftkit.models.attach import count_parameters
from peftkit.models.attention import use_attention
from peftkit.models.device import detect_hardware
from peftkit.models.start import Start, new_start, padding_id, pretrained_start
from peftkit.planning.decisions import decide
from peftkit.planning.hardware import Hardware
from peftkit.planning.precision import ChosenPrecision, Dtype, choose_base_dtype, choose_precision
from peftkit.planning.processes import check_machine, check_recipe
from peftkit.planning.sharding import check_sharding, is_sharded
from peftkit.recipe.installed import check_installed
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.schema import Recipe
from peftkit.runs.folder import RunFolder
from peftkit.runs.inputs import Inputs
from peftkit.runs.manifest import RunManifest
from peftkit.runs.versions import installed_versions
from peftkit.storage import sha256_of_json
from peftkit.training.processes import ALONE, Processes
from peftkit.training.sharded import check_types
from peftkit.training.signals import StopRequest
from peftkit.training.train import Work

__all__ = ["Job", "prepare_job"]


@dataclass(frozen=True)
class Job:
    """A run that could begin."""

    file: RecipeFile
    hardware: Hardware
    precision: ChosenPrecision
    base_dtype: Dtype
    start: Start
    data: RunData
    warnings: list[str]
    processes: Processes

    @property
    def recipe(self) -> Recipe:
        """What the run does."""
        return self.file.recipe

    @property
    def pad_token_id(self) -> int:
        """The token that fills rows."""
        return padding_id(self.start.tokenizer)

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights."""
        return is_sharded(self.recipe, self.processes.count)

    def load(self) -> Any:
        """The model with its weights, ready to train."""
        with self.file.locating():
            model = self.start.load(self.recipe, self.base_dtype, self._first_device())
            if self.is_sharded:
                check_types(model)
            attention = None
            if self.data.train.packed:
                attention = use_attention(model, self.hardware, self.base_dtype, self.precision)
        trainable, total = count_parameters(model)
        details = f", {attention}" if attention else ""
        console.info(
            f"{self.recipe.method} on {self._where()} in {self.precision}{details}: "
            f"{trainable:,} of {total:,} parameters are trained"
        )
        return model

    def _first_device(self) -> str:
        """Where the weights are loaded: those that are sharded need not fit on a device as a whole."""
        return "cpu" if self.is_sharded else self.processes.device(self.hardware)

    def _where(self) -> str:
        if not self.processes.are_many:
            return self.hardware.name
        sharing = " that share the weights" if self.is_sharded else ""
        return f"{self.processes.count} processes{sharing} on {self.hardware.name}"

    def manifest(self) -> RunManifest:
        """What the run says of itself before its first step."""
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
            warnings=list(self.warnings),
        )

    def data_record(self) -> dict[str, Any]:
        """What a manifest says about the data; of a stream, more is known after training."""
        return {
            "train": self.data.train.record(),
            "validation": self.data.validation.record() if self.data.validation else None,
        }

    def inputs(self) -> Inputs:
        """The files that must stay what they are."""
        located = self.start.located
        return Inputs.of(self.start.record(), located.folder if located else None, self.data_record())

    def work(self, folder: RunFolder, run_id: str, warnings: list[str], stop: StopRequest) -> Work:
        """What training needs, of a run that begins."""
        return Work(
            recipe=self.recipe,
            data=self.data,
            pad_token_id=self.pad_token_id,
            hardware=self.hardware,
            precision=self.precision,
            folder=folder,
            run_id=run_id,
            warnings=warnings,
            stop=stop,
            processes=self.processes,
        )

    def with_batch(self, rows: int, accumulation: int) -> Job:
        """The same run with another batch per pass."""
        batch = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
        return replace(self, file=self.file.with_training(batch))

    def with_evaluation_batch(self, rows: int) -> Job:
        """The same run with another batch in evaluations."""
        return replace(self, file=self.file.with_training({"per_device_eval_batch_size": rows}))


def prepare_job(file: RecipeFile, processes: Processes = ALONE, *, elsewhere: Hardware | None = None) -> Job:
    """Look at the machine, the base's structure and the data; nothing is written.

    Of several processes, one for each machine tokenises the data, and the others find it in the cache. `elsewhere` is a
    machine that is not here, to plan for.

    Raises:
        InputError: recipe, base or data are wrong.
    """
    recipe = file.recipe
    with file.locating(), processes.first_on_machine("data"):
        hardware = elsewhere or detect_hardware()
        check_machine(processes.place, hardware)
        check_recipe(recipe, processes.count)
        check_installed(recipe)
        decide(hardware, recipe)  # what this machine cannot do is refused here, at its line of the recipe
        precision = choose_precision(recipe.precision, hardware).choice
        check_sharding(recipe, processes.count, precision)
        base_dtype = choose_base_dtype(recipe.base.dtype, recipe.method, precision).choice
        start = _start(recipe)
        data = prepare(recipe.data, start.tokenizer)
        console.info(f"train: {data.train.summary()}")
        warnings = check(data, recipe.data)
        for message in warnings:
            console.warning(message)
        _take_chat_template(recipe, data, start)
    return Job(_stated(file, data), hardware, precision, base_dtype, start, data, warnings, processes)


def _start(recipe: Recipe) -> Start:
    if recipe.base.init is None:
        return pretrained_start(recipe)
    return new_start(recipe, recipe.base.init, texts(recipe.data))


def _take_chat_template(recipe: Recipe, data: RunData, start: Start) -> None:
    """A tokenizer without a chat template gets the one that conversations are trained with, to be saved with it."""
    for source, part in zip(recipe.data.train_sources, data.train.parts, strict=False):  # of a stream, the first alone
        if part.corpus.reading.format == "chat":
            start.tokenizer.chat_template = chat_template(recipe.data.of(source), start.tokenizer)
            break


def _stated(file: RecipeFile, data: RunData) -> RecipeFile:
    """The recipe with the format that was recognised, which is told."""
    if file.recipe.data.format != "auto":
        return file
    for part in data.train.parts:
        reading = part.corpus.reading
        console.info(f"{part.corpus.name} has the format {reading.format}: {reading.why}.")
    return file.with_format(data.train.formats[0]) if len(data.train.formats) == 1 else file
