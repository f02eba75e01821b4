"""An adapter and its base made into one model, and the proof that it computes what the two computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from peftkit.errors import RunError, TargetError
from peftkit.merging.proof import INT8_TOLERANCE, logits_in_fresh_process, logits_of, probe_ids, relative_error
from peftkit.models.quantise import dequantised_base
from peftkit.models.target import RECORD_NAME, AdapterRecord, open_adapter, put_adapter
from peftkit.storage import atomic_folder, folder_hashes, is_free, read_json, write_json

__all__ = ["MERGE_DTYPES", "MergeReceipt", "Onto", "merge_adapter"]

Onto = Literal["dequantized", "original"]
MERGE_DTYPES = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}
"""Number types to save in, and the relative error of the logits that is accepted. Measured for an adapter on NF4:
3.8e-7 in float32, 8e-4 in float16, 6e-3 in bfloat16."""
RECEIPT_NAME = "merge.json"


@dataclass(frozen=True)
class MergeReceipt:
    """What was merged and how exactly the result computes the same."""

    adapter: str
    base: dict[str, Any]
    method: str
    onto: Onto
    dtype: str
    relative_error: float
    """Largest difference of the logits, over the largest logit of the adapter on its own base."""

    tolerance: float | None
    """None where the merge is onto other weights than the adapter was trained on, so that nothing is promised."""

    adapter_files: dict[str, str]


def merge_adapter(adapter: Path, output: Path, *, onto: Onto = "dequantized", dtype: str = "float32") -> MergeReceipt:
    """Write a full model that stands alone, after a fresh process has opened it and given the adapter's logits.

    The base is loaded anew: training may have changed the live one. An adapter that was trained on a quantised base
    belongs on that base's rounded weights, so these are what it is merged into unless `onto` says `original`.

    Raises:
        TargetError: the folders cannot be used.
        RunError: the merged model's logits are not the adapter's; nothing is written then.
    """
    _check_places(adapter, output)
    record = AdapterRecord.read(adapter)
    adapted, tokenizer, base = open_adapter(adapter, "cpu")
    probe = probe_ids(len(tokenizer))
    expected = logits_of(adapted, probe)
    config = base.config(record.recipe.base.dropout)
    if record.recipe.method == "qlora" and onto == "dequantized":
        plain = dequantised_base(adapted.base_model.model, base, config)
    else:
        plain = base.load(config, "float32")
    merged = put_adapter(plain, adapter, adapted.peft_config["default"]).merge_and_unload(safe_merge=True)
    merged.config.use_cache = True
    with atomic_folder(output) as folder:
        merged.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found = logits_in_fresh_process(folder, probe)
        tolerance = _tolerance(record, onto, dtype)
        error = relative_error(found, expected)
        if tolerance is not None and not error <= tolerance:
            raise RunError(
                f"the merged model's logits are {error:.1e} off the adapter's, more than {tolerance:.0e}.",
                where=str(adapter),
                remedy="Nothing was written.",
            )
        receipt = MergeReceipt(
            str(adapter.resolve()),
            base.record(),
            record.recipe.method,
            onto,
            dtype,
            error,
            tolerance,
            folder_hashes(adapter),
        )
        write_json(folder / RECEIPT_NAME, asdict(receipt))
        write_json(folder / RECORD_NAME, read_json(adapter / RECORD_NAME) | {"merged": True})
    return receipt


def _check_places(adapter: Path, output: Path) -> None:
    if not (adapter / "adapter_config.json").is_file():
        raise TargetError("is not an adapter.", where=str(adapter), remedy="Name a folder with adapter_config.json.")
    if output.resolve() == adapter.resolve() or adapter.resolve() in output.resolve().parents:
        raise TargetError(
            "is in the adapter's own folder, where the adapter would be applied a second time on loading.",
            where=str(output),
            remedy="Choose another folder.",
        )
    if not is_free(output):
        raise TargetError("exists already and is not empty.", where=str(output), remedy="Choose another folder.")


def _tolerance(record: AdapterRecord, onto: Onto, dtype: str) -> float | None:
    """The relative error that is accepted, or None where the weights are not those of training."""
    if record.recipe.method == "qlora" and onto == "original":
        return None
    if record.recipe.method == "qlora" and record.recipe.quantization.load_in_8bit:
        return max(INT8_TOLERANCE, MERGE_DTYPES[dtype])
    held = 1e-5 if record.base_dtype == "float32" else MERGE_DTYPES["bfloat16"]
    return max(held, MERGE_DTYPES[dtype])
