"""What a run ships: written, opened again as a user would, and found to compute what was trained."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from peftkit.adapters.record import Record
from peftkit.adapters.sample import Sample
from peftkit.data.sample import pick_sample
from peftkit.errors import RunError
from peftkit.merging.proof import INT8_TOLERANCE, compare, compare_in_fresh_process, logits_of
from peftkit.models.export import export
from peftkit.models.target import open_adapter
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest
from peftkit.storage import folder_hashes
from peftkit.workflows.job import Job

__all__ = ["ship"]

_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-2
"""Relative difference of logits between the model in memory and what was saved of it: rounding, and no more. The second
is for products in half precision, or with weights in it."""


def ship(model: Any, job: Job, folder: RunFolder, manifest: RunManifest) -> None:
    """Write what the run ships, open it again, and put the hashes of everything into the manifest.

    Raises:
        RunError: the adapter has no effect, or what was saved is not what was trained.
    """
    recipe = job.recipe
    place = folder.adapter if recipe.trains_adapter else folder.model
    manifest.data = job.data_record()
    record = Record(recipe, manifest.base, job.base_dtype, manifest.data, asdict(manifest.metrics), manifest.versions)
    sample = pick_sample(job.data)
    expected = logits_of(model, sample)
    if recipe.trains_adapter and recipe.lora.bias == "none":  # trained biases stay in the base, whatever is disabled
        _check_effect(model, expected, sample)
    export(model, job.start.tokenizer, place, record, sample)
    _verify(model, place, job, expected, sample)
    manifest.outputs = {f"{place.name}/{name}": digest for name, digest in folder_hashes(place).items()}
    manifest.files = folder.hashes()


def _check_effect(model: Any, expected: list[torch.Tensor], sample: Sample) -> None:
    """See that the adapter changes what the base says.

    Raises:
        RunError: it does not change one logit of the sample.
    """
    with model.disable_adapter():
        base = logits_of(model, sample)
    if all(torch.equal(ours, bases) for ours, bases in zip(expected, base, strict=True)):
        raise RunError(
            "the adapter has no effect: with it and without it, the model computes the same.",
            where="training",
            remedy="Check training.learning_rate, lora.lora_alpha and the number of steps.",
        )


def _verify(model: Any, place: Path, job: Job, expected: list[torch.Tensor], sample: Sample) -> None:
    """Open what was saved as a user would, and see that it computes what the model in memory computes.

    Raises:
        RunError: it does not.
    """
    recipe = job.recipe
    if recipe.trains_adapter:
        agreement = compare(logits_of(open_adapter(place, str(model.device))[0], sample), expected, sample)
    else:
        agreement = compare_in_fresh_process(place, expected, sample)
    in_8_bit = recipe.base_quantization is not None and recipe.base_quantization.load_in_8bit
    exact = job.precision == "fp32" and job.base_dtype == "float32"
    if agreement.relative_error > (INT8_TOLERANCE if in_8_bit else _TOLERANCE if exact else _HALF_TOLERANCE):
        raise RunError(
            f"what was saved computes other logits than what was trained: {agreement.relative_error:.1e} off.",
            where=str(place),
        )
