"""What a run ships: written, opened again as a user would, and found to compute what was trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from peftkit.adapters.export import export
from peftkit.adapters.opened import open_adapter
from peftkit.adapters.proof import INT8_TOLERANCE, compare, compare_in_fresh_process, logits_of
from peftkit.adapters.record import Record
from peftkit.adapters.sample import Sample, pick_sample
from peftkit.errors import MemoryRunError, RunError
from peftkit.models.kernels import use_fast_kernels
from peftkit.models.live import LiveModel
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest
from peftkit.shortage import memory_for
from peftkit.storage import folder_hashes
from peftkit.training.job import Job

__all__ = ["ship"]

_TOLERANCE, _ELSEWHERE_TOLERANCE = 1e-5, 1e-4
"""Relative difference of logits between the model in memory and what was saved of it. Both are computed in float32, in
the same way on the same device: on a CPU the difference is zero, whatever the precision of the run. The second is for a
whole model, which a process on the CPU opens."""


def ship(live: LiveModel, job: Job, folder: RunFolder, manifest: RunManifest) -> None:
    """Write what the run ships, open it again, and put the hashes of everything into the manifest.

    The model is released before the other one is opened, so that this needs no more memory than training did.

    Raises:
        RunError: the adapter has no effect, or what was saved is not what was trained.
        MemoryRunError: the memory is not there.
    """
    place = folder.adapter if job.recipe.trains_adapter else folder.model
    manifest.data = job.data_record()
    sample = pick_sample(job.data)
    with _ending(place):
        expected = _write(live.model, job, place, manifest, sample)
        device = str(live.model.device)
        live.release()
        _verify(place, device, job, expected, sample)
    manifest.outputs = {f"{place.name}/{name}": digest for name, digest in folder_hashes(place).items()}
    manifest.files = folder.hashes()


@contextmanager
def _ending(place: Path) -> Iterator[None]:
    """Say how to resume where memory is short within the block: another way to load the base would be another run."""
    remedy = "Free memory that others use, and resume the run: its checkpoints are kept."
    try:
        with memory_for("the proof of what was trained", where=str(place), remedy=remedy):
            yield
    except MemoryRunError as error:
        raise MemoryRunError(error.what, where=error.where, remedy=remedy) from error.__cause__


def _write(model: Any, job: Job, place: Path, manifest: RunManifest, sample: Sample) -> list[torch.Tensor]:
    """Write what the run ships.

    Returns:
        The logits of the sample, float32 on the CPU, each [tokens, vocabulary].

    Raises:
        RunError: the adapter has no effect.
    """
    recipe = job.recipe
    record = Record(recipe, manifest.base, job.base_dtype, manifest.data, asdict(manifest.metrics), manifest.versions)
    expected = logits_of(model, sample, exact=True)
    if recipe.trains_adapter and recipe.lora.bias == "none":  # trained biases stay in the base, whatever is disabled
        _check_effect(model, expected, sample)
    export(model, job.start.tokenizer, place, record, sample)
    return expected


def _check_effect(model: Any, expected: list[torch.Tensor], sample: Sample) -> None:
    """See that the adapter changes what the base says.

    Raises:
        RunError: it does not change one logit of the sample.
    """
    with model.disable_adapter():
        base = logits_of(model, sample, exact=True)
    if all(torch.equal(ours, bases) for ours, bases in zip(expected, base, strict=True)):
        raise RunError(
            "the adapter has no effect: with it and without it, the model computes the same.",
            where="training",
            remedy="Check training.learning_rate, lora.lora_alpha and the number of steps.",
        )


def _verify(place: Path, device: str, job: Job, expected: list[torch.Tensor], sample: Sample) -> None:
    """Open what was saved as a user would, and see that it computes what the model in memory computed.

    Raises:
        RunError: it does not.
    """
    recipe = job.recipe
    if recipe.trains_adapter:
        opened, _ = open_adapter(place, device)
        use_fast_kernels(opened, job.hardware)  # of the same operations, or 8 bits may round to another step
        agreement = compare(logits_of(opened, sample, exact=True), expected, sample)
    else:
        agreement = compare_in_fresh_process(place, expected, sample)
    in_8_bit = recipe.base_quantization is not None and recipe.base_quantization.load_in_8bit
    tolerance = INT8_TOLERANCE if in_8_bit else _TOLERANCE if recipe.trains_adapter else _ELSEWHERE_TOLERANCE
    if agreement.relative_error > tolerance:
        raise RunError(
            f"what was saved computes other logits than what was trained: {agreement.relative_error:.1e} off.",
            where=str(place),
        )
