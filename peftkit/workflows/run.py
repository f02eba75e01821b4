"""One run, from a recipe to a finished folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftkit import console
from peftkit.adapters.record import Record
from peftkit.adapters.sample import Sample
from peftkit.data.audit import check
from peftkit.data.chat import chat_template
from peftkit.data.prepare import RunData, prepare, texts
from peftkit.data.sample import pick_sample
from peftkit.errors import PeftkitError, RunError
from peftkit.merging.proof import INT8_TOLERANCE, compare, compare_in_fresh_process, logits_of
from peftkit.models.attach import count_parameters
from peftkit.models.attention import use_attention
from peftkit.models.device import detect_hardware
from peftkit.models.export import export
from peftkit.models.start import Start, new_start, padding_id, pretrained_start
from peftkit.models.target import open_adapter
from peftkit.planning.hardware import choose_base_dtype, choose_precision
from peftkit.recipe.loader import RecipeFile
from peftkit.recipe.schema import Recipe
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest, RunMetrics
from peftkit.runs.versions import installed_versions
from peftkit.storage import folder_hashes, sha256_of_json
from peftkit.training.train import train

__all__ = ["run"]

_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-2
"""Relative difference of logits between the model in memory and what was saved of it: rounding, and no more. The second
is for products in half precision, or with weights in it."""


def run(file: RecipeFile) -> tuple[RunFolder, RunManifest]:
    """Train what a recipe says and leave a run folder whose output has been opened again and found right.

    Raises:
        InputError: recipe, base or data are wrong; nothing has been written then.
        RunError: training or its check failed; the folder's manifest says so.
    """
    recipe = file.recipe
    folder = RunFolder(file.output)
    folder.check_free()
    with file.locating():
        hardware = detect_hardware()
        precision = choose_precision(recipe.precision, hardware)
        base_dtype = choose_base_dtype(recipe.base.dtype, recipe.method, precision)
        start = _start(recipe)
        data = _prepare(recipe, start)
        file = _stated(file, data)
        recipe = file.recipe
        model = start.load(recipe, base_dtype, hardware.device)
        attention = use_attention(model, hardware, base_dtype) if data.train.packed else None
    trainable, total = count_parameters(model)
    console.info(
        f"{recipe.method} on {hardware.name} in {precision}{f', {attention}' if attention else ''}: "
        f"{trainable:,} of {total:,} parameters are trained"
    )
    manifest = RunManifest(
        name=recipe.name,
        method=recipe.method,
        recipe_sha256=sha256_of_json(recipe.model_dump(mode="json")),
        base=start.record(),
        data={
            "train": data.train.record(),
            "validation": data.validation.record() if data.validation else None,
        },
        versions=installed_versions(),
        hardware=hardware.record(),
    )
    folder.create(file.resolved_yaml(), manifest)
    with _recorded(folder, manifest), file.locating():
        result = train(model, padding_id(start.tokenizer), data, recipe, folder, hardware, precision)
        measured = {name: value for name, value in asdict(result).items() if name in RunMetrics.__dataclass_fields__}
        manifest.metrics = RunMetrics(trainable_parameters=trainable, total_parameters=total, **measured)
        place = folder.adapter if recipe.trains_adapter else folder.model
        manifest.data["train"] = data.train.record()  # of a stream, more is known now
        record = Record(recipe, manifest.base, base_dtype, manifest.data, asdict(manifest.metrics), manifest.versions)
        sample = pick_sample(data)
        export(model, start.tokenizer, place, record, sample)
        _verify(model, place, recipe, sample, exact=precision == "fp32" and base_dtype == "float32")
        manifest.outputs = {f"{place.name}/{name}": digest for name, digest in folder_hashes(place).items()}
        manifest.status = "finished"
    return folder, manifest


def _start(recipe: Recipe) -> Start:
    if recipe.base.init is None:
        return pretrained_start(recipe)
    return new_start(recipe, recipe.base.init, texts(recipe.data))


def _prepare(recipe: Recipe, start: Start) -> RunData:
    """The data, seen to teach something that its validation can measure.

    A tokenizer without a chat template gets the one that conversations are trained with, to be saved with it.
    """
    data = prepare(recipe.data, start.tokenizer)
    console.info(f"train: {data.train.summary()}")
    for message in check(data, recipe.data):
        console.warning(message)
    for source, part in zip(recipe.data.train_sources, data.train.parts, strict=False):  # of a stream, the first alone
        if part.corpus.reading.format == "chat":
            start.tokenizer.chat_template = chat_template(recipe.data.of(source), start.tokenizer)
            break
    return data


def _stated(file: RecipeFile, data: RunData) -> RecipeFile:
    """The recipe with the format that was recognised, which is told."""
    if file.recipe.data.format != "auto":
        return file
    for part in data.train.parts:
        reading = part.corpus.reading
        console.info(f"{part.corpus.name} has the format {reading.format}: {reading.why}.")
    return file.with_format(data.train.formats[0]) if len(data.train.formats) == 1 else file


def _verify(model: Any, place: Path, recipe: Recipe, sample: Sample, *, exact: bool) -> None:
    """Open what was saved as a user would, and see that it computes what the model in memory computes.

    Raises:
        RunError: it does not.
    """
    expected = logits_of(model, sample)
    if recipe.trains_adapter:
        agreement = compare(logits_of(open_adapter(place, str(model.device))[0], sample), expected, sample)
    else:
        agreement = compare_in_fresh_process(place, expected, sample)
    in_8_bit = recipe.base_quantization is not None and recipe.base_quantization.load_in_8bit
    if agreement.relative_error > (INT8_TOLERANCE if in_8_bit else _TOLERANCE if exact else _HALF_TOLERANCE):
        raise RunError(
            f"what was saved computes other logits than what was trained: {agreement.relative_error:.1e} off.",
            where=str(place),
        )


@contextlib.contextmanager
def _recorded(folder: RunFolder, manifest: RunManifest) -> Iterator[None]:
    """Write the manifest when the run ends, whichever way it ends."""
    try:
        yield
    except KeyboardInterrupt:
        manifest.status = "stopped"
        raise
    except BaseException as error:
        manifest.status = "failed"
        manifest.error = str(error) if isinstance(error, PeftkitError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        folder.write(manifest)
