"""The output of a run: the audit, generated samples, and the adapter or model, which is opened and verified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftkit.adapters.card import model_card
from peftkit.adapters.files import CONFIG_NAME, GENERATION_NAME, RECORD_NAME, Adapter, Record
from peftkit.adapters.proof import SAMPLE_NAME, Sample, check_effect, compare, compare_in_fresh_process, logits_of
from peftkit.adapters.target import open_adapter
from peftkit.data.audit import audit
from peftkit.data.formats.format import NO_LABEL
from peftkit.data.prepare import RunData
from peftkit.data.sequences import Features
from peftkit.errors import MemoryRunError, RunError, first_line
from peftkit.evaluation.generation import Sample as Generated
from peftkit.evaluation.generation import begin_samples, complete_samples, ending
from peftkit.models.attach import save_model
from peftkit.models.kernels import use_fast_kernels
from peftkit.models.methods import method_named
from peftkit.models.quantization import backend_of
from peftkit.runs.folder import CARD_NAME
from peftkit.shortage import memory_for
from peftkit.storage import atomic_folder, folder_hashes, read_json, write_json, write_text
from peftkit.training.prepare import Run

__all__ = ["SAMPLE_TOKENS", "export", "export_run", "verify_output", "write_after", "write_before"]

_ROWS, SAMPLE_TOKENS = 8, 64
"""512 tokens: enough to see a wrong weight, and 100 MB of GPT-2's logits."""

_TOLERANCE, _ELSEWHERE_TOLERANCE = 1e-5, 1e-4
"""Relative difference of logits between the model in memory and what was saved of it. Both are computed in float32, in
the same way on the same device: on a CPU the difference is zero, whatever the precision of the run. The second is for a
whole model, which a process on the CPU opens."""


def write_before(run: Run, model: Any) -> None:
    """Write what the model is trained on and, where there are prompts and no checkpoint yet, what it generates."""
    recipe, tokenizer = run.recipe, run.start.tokenizer
    write_json(run.folder.audit, asdict(audit(run.data, tokenizer, recipe.training.per_device_train_batch_size)))
    if run.checkpoint is None and run.data.validation and recipe.generation.samples:
        with _at_no_cost(run, "before training"):
            begun = begin_samples(model, tokenizer, run.data.validation, recipe.generation)
            write_json(run.folder.samples, [asdict(sample) for sample in begun])


def write_after(run: Run, model: Any) -> None:
    """Write what the trained model generates from the same prompts, if there are any; its output is saved before."""
    if run.folder.samples.is_file():
        with _at_no_cost(run, "after training"):
            begun = [Generated(**each) for each in read_json(run.folder.samples)]
            ends, settings = run.data.train.end_tokens, run.recipe.generation
            samples = complete_samples(model, run.start.tokenizer, begun, settings, ends)
            write_json(run.folder.samples, [asdict(each) for each in samples])


@contextmanager
def _at_no_cost(run: Run, when: str) -> Iterator[None]:
    """Samples are only shown: where a model does not generate, the run is the same without them."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  a model's own code can fail in every way
        run.warn(f"there are no samples {when}, as the model does not generate: {first_line(error)}")


def export_run(run: Run, model: Any) -> tuple[Sample, list[torch.Tensor]]:
    """Write the output of the run.

    Returns:
        A sample of the data, and its logits, float32 on the CPU, each [tokens, vocabulary].

    Raises:
        RunError: the adapter has no effect.
        MemoryRunError: the memory is not there.
    """
    recipe, manifest, tokenizer = run.recipe, run.manifest, run.start.tokenizer
    sample = _pick_sample(run.data)
    record = Record(recipe, manifest.base, run.base_dtype, manifest.data, asdict(manifest.metrics), manifest.versions)
    with _memory_for_verification(run):
        expected = logits_of(model, sample, exact=True)
        method = method_named(recipe.method)
        if recipe.trains_adapter and method.can_be_disabled(recipe.adapter):
            check_effect(model, expected, sample, method.strength)
        ends = ending(model, run.data.train.end_tokens)
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
        export(model, tokenizer, run.output, record, sample)
    return sample, expected


def _pick_sample(data: RunData) -> Sample:
    """Rows spread over the validation data, or else the training data: of each, 64 tokens of its first document."""
    prepared, source = (data.validation, "validation data") if data.validation else (data.train, "training data")
    sequences = prepared.sequences
    numbers = np.linspace(0, len(sequences) - 1, min(_ROWS, len(sequences))).astype(int)
    rows = [_first_document(sequences[int(number)]) for number in numbers]
    taught = [row for row in rows if any(label != NO_LABEL for label in row[1])]
    return Sample.of(source, taught or rows)


def _first_document(row: Features) -> tuple[list[int], list[int]]:
    positions = row.get("position_ids")
    begins = np.flatnonzero(positions == 0) if positions is not None else np.zeros(1)
    end = min(int(begins[1]) if len(begins) > 1 else len(row["input_ids"]), SAMPLE_TOKENS)
    return row["input_ids"][:end].tolist(), row["labels"][:end].tolist()


def verify_output(run: Run, device: str, expected: list[torch.Tensor], sample: Sample) -> dict[str, str]:
    """Open what was saved as a user would, and check that it computes what the model in memory computed.

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
    held = recipe.base_quantization
    of_base = backend_of(held).tolerance(held) if held else 0.0
    tolerance = max(of_base, _TOLERANCE if recipe.trains_adapter else _ELSEWHERE_TOLERANCE)
    if agreement.relative_error > tolerance:
        what = f"what was saved computes other logits than what was trained: {agreement.relative_error:.1e} off."
        raise RunError(what, where=str(place))
    return {f"{place.name}/{name}": digest for name, digest in folder_hashes(place).items()}


@contextmanager
def _memory_for_verification(run: Run) -> Iterator[None]:
    """Where memory is short within the block, say how to resume: another way to load the base would be another run."""
    remedy = "Free memory that others use, and resume the run: its checkpoints are kept."
    try:
        with memory_for("the proof of what was trained", where=str(run.output), remedy=remedy):
            yield
    except MemoryRunError as error:
        raise MemoryRunError(error.what, where=error.where, remedy=remedy) from error.__cause__


def export(model: Any, tokenizer: Any, place: Path, record: Record, sample: Sample) -> None:
    """Write a trained model, or only its adapter, as a folder that Transformers or PEFT opens by itself.

    Of a model with an adapter nothing else is written: bitsandbytes has rounded its other weights.
    """
    if hasattr(model, "config"):
        model.config.use_cache = True  # off while training; generation needs it
    with atomic_folder(place) as folder:
        save_model(model, folder)
        tokenizer.save_pretrained(folder)
        if (folder / CONFIG_NAME).is_file():
            write_json(folder / GENERATION_NAME, model.generation_config.to_diff_dict())  # where generation stops
            config = _portable(read_json(folder / CONFIG_NAME), record.base["model"])
            write_json(folder / CONFIG_NAME, config)
            tensors = {name: tensor.sha256 for name, tensor in Adapter.read(folder).tensors.items()}
            record = replace(record, adapter_config=config, tensors=tensors)
        write_text(folder / CARD_NAME, model_card(record))
        write_json(folder / SAMPLE_NAME, sample.to_json())
        write_json(folder / RECORD_NAME, record.to_json())


def _portable(adapter_config: dict[str, Any], base: str | None) -> dict[str, Any]:
    """An adapter's configuration with the base's own name, in the same bytes every time.

    While training it names the folder of the base, and PEFT keeps module names in sets, whose order changes with the
    process.
    """
    ordered = {
        key: sorted(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else value
        for key, value in sorted(adapter_config.items())
    }
    return {**ordered, "base_model_name_or_path": base}
