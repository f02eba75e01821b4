"""An adapter and its base made into one model, and the proof that it computes what the two computed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from threadpoolctl import threadpool_limits
from transformers import GenerationConfig

from peftkit import console
from peftkit.adapters.card import model_card
from peftkit.adapters.combine import made_from, sum_of_adapters, write_adapter
from peftkit.adapters.files import (
    AS_RECORDED,
    CONFIG_NAME,
    GENERATION_NAME,
    RECEIPT_NAME,
    RECORD_NAME,
    WEIGHTS_NAME,
    Adapter,
    GivenBase,
    Record,
    copy_tokenizer,
    has_tokenizer,
)
from peftkit.adapters.merged_weights import MergedWeights, write_shards
from peftkit.adapters.proof import SAMPLE_NAME, Agreement, Sample, compare_in_fresh_process, logits_of
from peftkit.adapters.target import HeldBase, check_fit, find_held_base, model_as_base, put_adapter
from peftkit.errors import RunError, TargetError
from peftkit.models.quantization import backend_of
from peftkit.recipe.schema import Base
from peftkit.runs.folder import CARD_NAME
from peftkit.runs.versions import installed_versions
from peftkit.shortage import memory_for
from peftkit.storage import atomic_folder, folder_hashes, is_free, sha256_of_file, sync_files, write_json, write_text

__all__ = ["MERGE_DTYPES", "MergeReceipt", "MergeSettings", "Onto", "merge"]

MERGE_DTYPES = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}
"""Dtypes to save in, and the relative error of the logits that is accepted. Measured for an adapter on NF4:
3.8e-7 in float32, 8e-4 in float16, 6e-3 in bfloat16."""


Onto = Literal["dequantized", "original"]


@dataclass(frozen=True)
class MergeSettings:
    """How to merge."""

    onto: Onto = "dequantized"
    """Which weights of the base: those that training saw, or the ones in its files."""

    dtype: str = "float32"
    shard_bytes: int = 50 * 10**9
    """Largest size of a file; Transformers' own default."""

    verify: bool = True


@dataclass(frozen=True)
class MergeReceipt:
    """What was merged into what, and how exactly the result computes the same."""

    adapters: list[dict[str, Any]]
    """Of each: its folder, its weight in the sum, and the SHA-256 of its files."""

    base: dict[str, Any]
    quantization: dict[str, Any] | None
    onto: Onto
    dtype: str
    proof: Agreement | None
    """None where it was not asked for."""

    tolerance: float | None
    """Largest relative error that is accepted; None where the merge is onto other weights than the adapter was trained
    on, so that nothing is promised."""

    outputs: dict[str, str]
    """SHA-256 of each file of the merged model."""

    versions: dict[str, str | None]


def merge(
    folders: Sequence[tuple[Path, float]],
    output: Path,
    settings: MergeSettings = MergeSettings(),
    given: GivenBase = AS_RECORDED,
) -> MergeReceipt:
    """Write a full model that stands alone, after a fresh process has opened it and given the adapter's logits.

    The base is read anew, a tensor at a time: training may have changed the live one. An adapter that was trained on a
    quantised base belongs on that base's rounded weights, so these are what it is merged into unless `settings` say
    otherwise. Of several adapters the weighted sum is merged.

    Raises:
        TargetError: the folders cannot be used.
        RunError: the merged model's logits are not the adapter's; nothing is written then.
        MemoryRunError: a tensor or the proof does not fit into memory; nothing is written then.
    """
    _check_places([folder for folder, _ in folders], output)
    with tempfile.TemporaryDirectory() as work:
        parts = _parts(folders, Path(work), given)
        hashes: dict[str, str] = {}
        remedy = "Free memory of the machine that others use."
        with memory_for("a merged tensor", where=str(output), remedy=remedy), atomic_folder(output, hashes) as folder:
            hashes |= _write_model(folder, parts, settings)
            with ThreadPoolExecutor(max_workers=1) as beside:  # the disk is busy with one, a processor with the other
                beside.submit(sync_files, folder)
                base = parts.held.base.record()
            tolerance = _tolerance(parts.held, settings)
            proof = _prove(folder, parts, tolerance) if settings.verify else None
            quantization = parts.held.quantization
            receipt = MergeReceipt(
                adapters=[_named(each, weight) for each, weight in folders],
                base=base,
                quantization=quantization.model_dump(mode="json") if quantization else None,
                onto=settings.onto,
                dtype=settings.dtype,
                proof=proof,
                tolerance=tolerance,
                outputs=folder_hashes(folder, hashes),
                versions=installed_versions(),
            )
            _write_metadata(folder, parts, asdict(receipt))
    return receipt


class _Parts(NamedTuple):
    """What a model is made of."""

    adapter: Adapter | None
    """None where the model is whole already, and is only written in another dtype or in other files."""

    held: HeldBase
    folder: Path
    """Of the first adapter, or of the model: what brings tokenizer and sample."""

    record: Record | None


def _parts(folders: Sequence[tuple[Path, float]], work: Path, given: GivenBase) -> _Parts:
    first, weights = folders[0][0], [weight for _, weight in folders]
    if weights == [1] and not (first / CONFIG_NAME).is_file():
        return _Parts(None, model_as_base(Base(model=str(first))), first, Record.read(first))
    adapters = [Adapter.read(folder) for folder, _ in folders]
    bases = [find_held_base(adapter, given) for adapter in adapters]
    for adapter in adapters:
        check_fit(adapter, bases[0])
    merged = adapters[0]
    if weights != [1]:
        merged = write_adapter(work, merged, sum_of_adapters(adapters, weights), made_from(adapters, weights))
    return _Parts(merged, bases[0], first, merged.record)


def _check_places(folders: Sequence[Path], output: Path) -> None:
    for folder in folders:
        if output.resolve() == folder.resolve() or folder.resolve() in output.resolve().parents:
            what = "is in the adapter's own folder, where the adapter would be applied a second time on loading."
            raise TargetError(what, where=str(output), remedy="Choose another folder.")
    if not is_free(output):
        raise TargetError("exists already and is not empty.", where=str(output), remedy="Choose another folder.")
    for left in output.parent.glob(f".{output.name}.*.part"):
        console.warning(f"{left} is left over from a merge that was stopped, or belongs to one that is running.")


def _write_model(folder: Path, parts: _Parts, settings: MergeSettings) -> dict[str, str]:
    """Write weights, tokenizer and configurations; the configuration last, without which nothing opens the folder.

    Gives the SHA-256 of the weight files.
    """
    base = parts.held.base
    is_original, dtype = settings.onto == "original", getattr(torch, settings.dtype)
    weights = MergedWeights(parts.held, parts.adapter, dtype, original=is_original)
    with threadpool_limits(1):  # BLAS's threads wait busily, and would take the processor from hashing
        hashes = write_shards(folder, weights.outline, settings.shard_bytes, weights.make)
    copy_tokenizer(parts.folder if has_tokenizer(parts.folder) else base.folder, folder)
    config = base.config()
    config.use_cache = True
    config.dtype = settings.dtype
    config.architectures = [type(weights.structure).__name__]
    if weights.vocabulary is not None:
        config.get_text_config().vocab_size = weights.vocabulary
    if weights.unties:
        config.tie_word_embeddings = False
    if not (folder / GENERATION_NAME).is_file() and (base.folder / GENERATION_NAME).is_file():
        shutil.copyfile(base.folder / GENERATION_NAME, folder / GENERATION_NAME)
    if not (folder / GENERATION_NAME).is_file():
        GenerationConfig.from_model_config(config).save_pretrained(folder)
    config.save_pretrained(folder)
    return hashes


def _prove(folder: Path, parts: _Parts, tolerance: float | None) -> Agreement:
    """Compare the model that was written with the adapter on its own base.

    Raises:
        RunError: they differ by more than is accepted.
    """
    remedy = "Free memory of the machine that others use; --no-verify leaves the proof out."
    with memory_for("the adapter on its base in float32", where=str(parts.folder), remedy=remedy):
        model = parts.held.load("cpu")
        if parts.adapter is not None:
            model = put_adapter(model, parts.adapter)
        sample = Sample.read(parts.folder, model.get_input_embeddings().weight.shape[0])
        expected = logits_of(model, sample, exact=True)
        del model  # the process that proves needs the memory
    agreement = compare_in_fresh_process(folder, expected, sample)
    if tolerance is not None and agreement.relative_error > tolerance:
        off = f"{agreement.relative_error:.1e} off the adapter's, {tolerance:.0e} allowed"
        raise RunError(f"the merged model's logits are {off}.", where=str(parts.folder), remedy="Nothing was written.")
    return agreement


def _tolerance(held: HeldBase, settings: MergeSettings) -> float | None:
    """The relative error that is accepted, or None where the weights are not those of training.

    Weights that were held in half precision are those of training too: the original ones differ in their last bits.
    """
    if (held.quantization or held.dtype != "float32") and settings.onto == "original":
        return None
    quantization = held.quantization
    return max(backend_of(quantization).tolerance(quantization) if quantization else 0.0, MERGE_DTYPES[settings.dtype])


def _named(folder: Path, weight: float) -> dict[str, Any]:
    files = (CONFIG_NAME, WEIGHTS_NAME, RECORD_NAME)
    hashes = {name: sha256_of_file(folder / name) for name in files if (folder / name).is_file()}
    return {"adapter": str(folder), "weight": weight, "files": hashes}


def _write_metadata(folder: Path, parts: _Parts, receipt: dict[str, Any]) -> None:
    """Write how the model came to be."""
    write_json(folder / RECEIPT_NAME, receipt)
    if (parts.folder / SAMPLE_NAME).is_file():
        shutil.copyfile(parts.folder / SAMPLE_NAME, folder / SAMPLE_NAME)
    if parts.record is not None:
        write_json(folder / RECORD_NAME, replace(parts.record, adapter_config=None, tensors=None).to_json())
        write_text(folder / CARD_NAME, model_card(parts.record, receipt))
