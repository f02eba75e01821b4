"""What a run folder holds for people to look at: the audit of the data, and samples of what the model writes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from peftkit.data.audit import audit
from peftkit.evaluation.samples import Sample, begin_samples, complete_samples
from peftkit.runs.folder import RunFolder
from peftkit.storage import read_json, write_json
from peftkit.training.job import Job

__all__ = ["show_after", "show_before"]


def show_before(model: Any, job: Job, folder: RunFolder, *, resumed: bool) -> None:
    """Write down what is taught, and what the model writes before it is."""
    rows = job.recipe.training.per_device_train_batch_size
    write_json(folder.audit, asdict(audit(job.data, job.start.tokenizer, rows)))
    if not resumed and job.data.validation and job.recipe.generation.samples:
        begun = begin_samples(model, job.start.tokenizer, job.data.validation, job.recipe.generation)
        write_json(folder.samples, [asdict(sample) for sample in begun])


def show_after(model: Any, job: Job, folder: RunFolder) -> None:
    """Write down what the model writes now."""
    if folder.samples.is_file():
        begun = [Sample(**sample) for sample in read_json(folder.samples)]
        samples = complete_samples(model, job.start.tokenizer, begun, job.recipe.generation)
        write_json(folder.samples, [asdict(sample) for sample in samples])
