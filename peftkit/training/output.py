"""What a run leaves: the audit, generated samples, and its output, which is opened as a user would and verified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from peftkit.adapters.export import export
from peftkit.adapters.opened import open_adapter
from peftkit.adapters.proof import INT8_TOLERANCE, check_effect, compare, compare_in_fresh_process, logits_of
from peftkit.adapters.record import Record
from peftkit.adapters.sample import Sample
from peftkit.data.audit import audit
from peftkit.errors import MemoryRunError, RunError
from peftkit.evaluation.samples import Sample as Generated
from peftkit.evaluation.samples import begin_samples, complete_samples
from peftkit.models.kernels import use_fast_kernels
from peftkit.shortage import memory_for
from peftkit.storage import folder_hashes, read_json, write_json
from peftkit.training.prepare import Run

__all__ = ["export_run", "verify_output", "write_audit", "write_samples_after", "write_samples_before"]

_TOLERANCE, _ELSEWHERE_TOLERANCE = 1e-5, 1e-4
"""Relative difference of logits between the model in memory and what was saved of it. Both are computed in float32, in
the same way on the same device: on a CPU the difference is zero, whatever the precision of the run. The second is for a
whole model, which a process on the CPU opens."""


def write_audit(run: Run) -> None:
    """Write down what the model is trained on."""
    rows = run.recipe.training.per_device_train_batch_size
    write_json(run.folder.audit, asdict(audit(run.data, run.start.tokenizer, rows)))


def write_samples_before(run: Run, model: Any) -> None:
    """Write down what the model generates before it is trained, if there are prompts and the run starts here."""
    if run.checkpoint is None and run.data.validation and run.recipe.generation.samples:
        begun = begin_samples(model, run.start.tokenizer, run.data.validation, run.recipe.generation)
        write_json(run.folder.samples, [asdict(sample) for sample in begun])


def write_samples_after(run: Run, model: Any) -> None:
    """Write down what the model generates now."""
    if run.folder.samples.is_file():
        begun = [Generated(**sample) for sample in read_json(run.folder.samples)]
        samples = complete_samples(model, run.start.tokenizer, begun, run.recipe.generation)
        write_json(run.folder.samples, [asdict(sample) for sample in samples])


def export_run(run: Run, model: Any, sample: Sample) -> list[torch.Tensor]:
    """Write what the run ships.

    Returns:
        The logits of the sample, float32 on the CPU, each [tokens, vocabulary].

    Raises:
        RunError: the adapter has no effect.
        MemoryRunError: the memory is not there.
    """
    recipe, manifest = run.recipe, run.manifest
    record = Record(recipe, manifest.base, run.base_dtype, manifest.data, asdict(manifest.metrics), manifest.versions)
    with _memory_for_verification(run):
        expected = logits_of(model, sample, exact=True)
        if recipe.trains_adapter and recipe.lora.bias == "none":  # trained biases stay in the base, even when disabled
            check_effect(model, expected, sample)
        export(model, run.start.tokenizer, run.output, record, sample)
    return expected


def verify_output(run: Run, device: str, expected: list[torch.Tensor], sample: Sample) -> dict[str, str]:
    """Open what was saved as a user would, and see that it computes what the model in memory computed.

    Returns:
        SHA-256 of each file of the output, by its path in the run folder.

    Raises:
        RunError: it does not.
        MemoryRunError: the memory is not there.
    """
    recipe, place = run.recipe, run.output
    with _memory_for_verification(run):
        if recipe.trains_adapter:
            opened, _ = open_adapter(place, device)
            use_fast_kernels(opened, run.hardware)  # of the same operations, or 8 bits may round to another step
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
    return {f"{place.name}/{name}": digest for name, digest in folder_hashes(place).items()}


@contextmanager
def _memory_for_verification(run: Run) -> Iterator[None]:
    """Say how to resume where memory is short within the block: another way to load the base would be another run."""
    remedy = "Free memory that others use, and resume the run: its checkpoints are kept."
    try:
        with memory_for("the proof of what was trained", where=str(run.output), remedy=remedy):
            yield
    except MemoryRunError as error:
        raise MemoryRunError(error.what, where=error.where, remedy=remedy) from error.__cause__
