"""What a run ships: an adapter or a model with its tokenizer, a card, and a record of how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftkit.models.target import RECORD_NAME
from peftkit.recipe.schema import Recipe
from peftkit.runs.manifest import RunMetrics
from peftkit.storage import atomic_folder, read_json, write_json, write_text

__all__ = ["export", "record_of"]


def record_of(recipe: Recipe, base: dict[str, Any], base_dtype: str, metrics: RunMetrics) -> dict[str, Any]:
    """How an adapter or a model was made, as `peftkit.json` says it beside the weights."""
    return {
        "recipe": recipe.model_dump(mode="json", exclude={"output"}),
        "base": base,
        "base_dtype": base_dtype,
        "metrics": {"perplexity": metrics.perplexity, "base_perplexity": metrics.base_perplexity},
    }


def export(model: Any, tokenizer: Any, place: Path, record: dict[str, Any]) -> None:
    """Write a trained model, or only its adapter, as a folder that Transformers or PEFT opens alone.

    Of an adapter nothing but the adapter is written: bitsandbytes has rounded the live model's other weights.
    """
    if hasattr(model, "config"):
        model.config.use_cache = True  # off while training; whoever generates wants it
    with atomic_folder(place) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        config = folder / "adapter_config.json"
        if config.is_file():
            write_json(config, _portable(read_json(config), record["base"]["model"]))
        write_text(folder / "README.md", _card(record))
        write_json(folder / RECORD_NAME, record)


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


def _card(record: dict[str, Any]) -> str:
    """The model card: what it is, how it was made, how to open it."""
    recipe, base = record["recipe"], record["base"]
    name, method = recipe["name"], recipe["method"]
    adapter = method != "full"
    reference = base["model"] or "a new model"
    front = ["---", "library_name: peft" if adapter else "library_name: transformers"]
    if not reference.startswith(("builtin:", "/")) and base["model"]:
        front.append(f"base_model: {reference}")
    front += ["tags:", f"- {'lora' if adapter else 'text-generation'}", "- peftkit", "---"]
    made = {
        "full": f"Every weight of {reference}, fine-tuned",
        "lora": f"A LoRA adapter for {reference}, trained",
        "qlora": f"A LoRA adapter for {reference}, trained on its quantised weights,",
    }[method]
    training = recipe["training"]
    lines = [
        *front,
        "",
        f"# {name}",
        "",
        f"{made} with peftkit from the recipe `{name}`.",
        "",
        "| | |",
        "|---|---|",
        f"| method | {method} |",
        *([f"| LoRA | r {recipe['lora']['r']}, alpha {recipe['lora']['lora_alpha']:g} |"] if adapter else []),
        *([f"| base quantised to | {_width(recipe['quantization'])} |"] if method == "qlora" else []),
        f"| learning rate | {training['learning_rate']:g}, {training['lr_scheduler_type']} |",
        f"| batch size | {training['per_device_train_batch_size'] * training['gradient_accumulation_steps']} |",
        f"| epochs | {training['num_train_epochs']:g} |",
        f"| perplexity before | {_number(record['metrics']['base_perplexity'])} |",
        f"| perplexity after | {_number(record['metrics']['perplexity'])} |",
        f"| SHA-256 of the base | {base['sha256'] or 'none: made from nothing'} |",
        "",
        "Try it, measure it again, or make a full model of it:" if adapter else "Try it, or measure it again:",
        "",
        "```sh",
        'peftkit generate FOLDER --prompt "..."',
        "peftkit evaluate FOLDER",
        *(["peftkit merge FOLDER OUTPUT"] if adapter else []),
        "```",
        "",
        f"`{RECORD_NAME}` holds the complete recipe.",
        "",
    ]
    return "\n".join(lines)


def _width(quantization: dict[str, Any]) -> str:
    if quantization["load_in_8bit"]:
        return "8 bits, LLM.int8()"
    double = ", scales quantised too" if quantization["bnb_4bit_use_double_quant"] else ""
    return f"4 bits, {quantization['bnb_4bit_quant_type'].upper()}{double}"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
