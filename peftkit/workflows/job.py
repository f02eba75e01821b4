"""What a run needs before its folder is touched: a recipe that was checked, a base, data, and a machine to do it on."""

from __future__ import annotations

import os
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
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.schema import Recipe
from peftkit.runs.folder import RunFolder
from peftkit.runs.inputs import Inputs
from peftkit.runs.manifest import RunManifest
from peftkit.runs.versions import installed_versions
from peftkit.storage import sha256_of_json
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

    @property
    def recipe(self) -> Recipe:
        """What the run does."""
        return self.file.recipe

    @property
    def pad_token_id(self) -> int:
        """The token that fills rows."""
        return padding_id(self.start.tokenizer)

    def load(self) -> Any:
        """The model with its weights, ready to train."""
        with self.file.locating():
            model = self.start.load(self.recipe, self.base_dtype, self.hardware.device)
            attention = use_attention(model, self.hardware, self.base_dtype) if self.data.train.packed else None
        trainable, total = count_parameters(model)
        console.info(
            f"{self.recipe.method} on {self.hardware.name} in {self.precision}{f', {attention}' if attention else ''}: "
            f"{trainable:,} of {total:,} parameters are trained"
        )
        return model

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
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
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

    def work(self, folder: RunFolder, manifest: RunManifest, stop: StopRequest) -> Work:
        """What training needs, of a run that begins."""
        return Work(
            recipe=self.recipe,
            data=self.data,
            pad_token_id=self.pad_token_id,
            hardware=self.hardware,
            precision=self.precision,
            folder=folder,
            manifest=manifest,
            stop=stop,
        )

    def with_batch(self, rows: int, accumulation: int) -> Job:
        """The same run with another batch per pass."""
        batch = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
        return replace(self, file=self.file.with_training(batch))


def prepare_job(file: RecipeFile, elsewhere: Hardware | None = None) -> Job:
    """Look at the machine, the base's structure and the data; nothing is written.

    `elsewhere` is a machine that is not here, to plan for.

    Raises:
        InputError: recipe, base or data are wrong.
    """
    recipe = file.recipe
    with file.locating():
        hardware = elsewhere or detect_hardware()
        decide(hardware, recipe)  # what this machine cannot do is refused here, at its line of the recipe
        precision = choose_precision(recipe.precision, hardware).choice
        base_dtype = choose_base_dtype(recipe.base.dtype, recipe.method, precision).choice
        start = _start(recipe)
        data = prepare(recipe.data, start.tokenizer)
        console.info(f"train: {data.train.summary()}")
        warnings = check(data, recipe.data)
        for message in warnings:
            console.warning(message)
        _take_chat_template(recipe, data, start)
    return Job(_stated(file, data), hardware, precision, base_dtype, start, data, warnings)


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
