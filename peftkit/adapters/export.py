"""What a run ships: an adapter or a model with its tokenizer, a card, a record of how it was made, and a sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from peftkit.adapters.card import model_card
from peftkit.adapters.files import CONFIG_NAME, read_adapter
from peftkit.adapters.record import RECORD_NAME, Record
from peftkit.adapters.sample import SAMPLE_NAME, Sample
from peftkit.runs.folder import CARD_NAME
from peftkit.storage import atomic_folder, read_json, write_json, write_text

__all__ = ["export"]


def export(model: Any, tokenizer: Any, place: Path, record: Record, sample: Sample) -> None:
    """Write a trained model, or only its adapter, as a folder that Transformers or PEFT opens alone.

    Of an adapter nothing but the adapter is written: bitsandbytes has rounded the live model's other weights.
    """
    if hasattr(model, "config"):
        model.config.use_cache = True  # off while training; whoever generates wants it
    with atomic_folder(place) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if (folder / CONFIG_NAME).is_file():
            config = _portable(read_json(folder / CONFIG_NAME), record.base["model"])
            write_json(folder / CONFIG_NAME, config)
            tensors = {name: tensor.sha256 for name, tensor in read_adapter(folder).tensors.items()}
            record = replace(record, adapter_config=config, tensors=tensors)
        write_text(folder / CARD_NAME, model_card(record))
        write_json(folder / SAMPLE_NAME, sample.to_json())
        write_json(folder / RECORD_NAME, record.to_json())


def _portable(adapter_config: dict[str, Any], base: str | None) -> dict[str, Any]:
    """An adapter's configuration with the base's own name, in the same bytes every time.

    While training it names the folder that the base was opened from; and PEFT keeps the names of modules in sets, whose
    order changes from one process to the next.
    """
    ordered = {
        key: sorted(value) if key in ("target_modules", "exclude_modules") and isinstance(value, list) else value
        for key, value in sorted(adapter_config.items())
    }
    return {**ordered, "base_model_name_or_path": base}
