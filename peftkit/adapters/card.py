"""The model card: what an adapter or a model is, how it was made and how good it is, how to open it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from peftkit.adapters.files import RECORD_NAME, Record
from peftkit.adapters.inspect import kinds_of
from peftkit.metrics import in_group
from peftkit.models.methods import method_named
from peftkit.models.quantization import backend_of
from peftkit.recipe.advice import shown
from peftkit.recipe.fields import set_fields
from peftkit.recipe.schema import Source

__all__ = ["model_card", "proof_rows", "without_folders"]

_OPEN_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import GenerationConfig

model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")
model.generation_config = GenerationConfig.from_pretrained("FOLDER")  # where a text ends"""
_OPEN_EMBEDDED = """\
import peftkit
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

base = AutoModelForCausalLM.from_pretrained(peftkit.base_folder("BASE"))
model = PeftModel.from_pretrained(base, "FOLDER")
model.generation_config = GenerationConfig.from_pretrained("FOLDER")  # where a text ends"""
_RESIZED = """
rows = len(AutoTokenizer.from_pretrained("FOLDER"))  # of the new tokens too
if rows > base.get_input_embeddings().num_embeddings:
    base.resize_token_embeddings(rows)
model = PeftModel"""
_OPEN_MODEL = """\
from transformers import pipeline

print(pipeline("text-generation", "FOLDER")("...")[0]["generated_text"])"""


def model_card(record: Record, receipt: dict[str, Any] | None = None) -> str:
    """The text of `README.md` next to the weights; for a merged model, with the receipt of its proof."""
    merged = receipt is not None
    adapter = record.recipe.trains_adapter and not merged
    parts = [
        *_front_matter(record, adapter),
        f"# {record.recipe.name}",
        "",
        f"{_what(record, merged)} with peftkit from the recipe `{record.recipe.name}`.",
        *([record.recipe.description] if record.recipe.description else []),
        "",
        *_table("How it was made", _made(record)),
        *_table("How good it is", _measured(record)),
        *(_table("How exactly it was merged", proof_rows(receipt)) if receipt else []),
        *_table("Recipe", _set(record)),
        *_use(record, adapter),
        f"`{RECORD_NAME}` holds the complete recipe, the hashes of base and data, and the versions.",
        "",
    ]
    return "\n".join(parts)


def _front_matter(record: Record, adapter: bool) -> list[str]:
    """What the hub reads."""
    base = record.base["model"]
    named = [f"base_model: {base}"] if base and not base.startswith(("builtin:", "/")) else []
    tag = method_named(record.recipe.method).tag
    library, tags = ("peft", [tag, "peftkit"]) if adapter else ("transformers", ["peftkit"])
    lines = [
        f"library_name: {library}",
        *named,
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return ["---", *lines, "---", ""]


def _what(record: Record, merged: bool) -> str:
    base = _base_name(record)
    adapter = method_named(record.recipe.method).adapter
    if adapter is None:
        return f"Every weight of {base}, fine-tuned"
    quantised = " on its quantised weights" if record.recipe.base_quantization else ""
    if merged:
        return f"{base} with {adapter} merged into it, trained{quantised}"
    return f"{adapter[0].upper()}{adapter[1:]} for {base}, trained{quantised}"


def _made(record: Record) -> Iterator[tuple[str, str]]:
    recipe = record.recipe
    yield "base", _base_name(record) + (f" at {record.base['revision']}" if record.base["revision"] else "")
    yield "SHA-256 of the base", record.base["sha256"] or "none: made from nothing"
    yield "data", ", ".join(_data_name(source) for source in recipe.data.train_sources)
    yield "method", recipe.method
    if recipe.trains_adapter:
        method = method_named(recipe.method)
        targets = (record.adapter_config or {}).get("target_modules") or []
        yield method.name, method.summary(recipe.adapter, kinds_of(targets) if isinstance(targets, list) else [])
    if recipe.base_quantization:
        held = recipe.base_quantization
        yield "base quantised to", backend_of(held).describe(held)[1]
    yield "base dtype", record.base_dtype
    yield "batch size", str(recipe.training.effective_batch)
    if record.made_from:
        yield "made from", ", ".join(f"{part['weight']:g} x {part['adapter']}" for part in record.made_from)
    versions = (f"{name} {version}" for name, version in record.versions.items() if version)
    yield "versions", ", ".join(versions)


def _set(record: Record) -> Iterator[tuple[str, str]]:
    """Every field that the recipe sets, without the folders of the machine that trained."""
    for home, fields in set_fields(record.recipe.model_dump(mode="json")).items():
        for name, value in fields.items():
            text = shown(without_folders(value)).replace("|", "\\|")
            yield f"`{name if home == 'recipe' else f'{home}.{name}'}`", text if text.isprintable() else repr(text)


def without_folders(value: Any) -> Any:
    """A JSON value in which every absolute path is cut to its last part, so that others can find what it names."""
    if isinstance(value, dict):
        return {without_folders(key): without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    is_path = isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~"))
    return PurePath(value).name if is_path else value


def _measured(record: Record) -> Iterator[tuple[str, str]]:
    for name, metric in in_group("quality").items():
        yield metric.label, metric.text(record.metrics.get(name))


def proof_rows(receipt: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the receipt of a merge says of its proof."""
    yield "merged onto", f"the {receipt['onto']} base, as {receipt['dtype']}"
    proof, tolerance = receipt["proof"], receipt["tolerance"]
    if proof is None:
        yield "compared with the adapter", "no: merged with --no-verify"
        return
    sample = f"{proof['tokens']:,} tokens of {proof['sample']}, in a process without PEFT"
    yield "compared with the adapter on", sample
    allowed = "nothing promised" if tolerance is None else f"{tolerance:.0e} allowed"
    yield "relative error of the logits", f"{proof['relative_error']:.1e}, {allowed}"
    yield "KL divergence", f"{proof['kl_divergence']:.1e} nats a token"
    yield "same next token", f"{proof['same_next_token']:.2%}"
    if proof.get("expected_perplexity") is not None:
        yield "perplexity on the sample", f"{proof['expected_perplexity']:.4g} → {proof['found_perplexity']:.4g}"


def _use(record: Record, adapter: bool) -> list[str]:
    merge = ["peftkit merge FOLDER OUTPUT"] if adapter else []
    commands = ['peftkit generate FOLDER --prompt "..."', "peftkit evaluate FOLDER", *merge]
    base = record.base["model"] or ""
    opened = _OPEN_ADAPTER if adapter else _OPEN_MODEL
    if adapter and base.startswith("builtin:"):  # PEFT alone does not find it
        opened = _OPEN_EMBEDDED.replace("BASE", base)
        if record.recipe.base.add_tokens:  # AutoPeftModelForCausalLM sees to it by itself
            opened = opened.replace("\nmodel = PeftModel", _RESIZED).replace(
                "CausalLM, Gen", "CausalLM, AutoTokenizer, Gen"
            )
    return ["## Use", "", "```sh", *commands, "```", "", "```python", opened, "```", ""]


def _table(title: str, rows: Iterator[tuple[str, str]]) -> list[str]:
    return [f"## {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]


def _base_name(record: Record) -> str:
    return str(without_folders(record.base["model"] or "a new model"))


def _data_name(source: Source) -> str:
    """A source as others can find it."""
    if source.path is not None:
        return ", ".join(without_folders([source.path] if isinstance(source.path, str) else source.path))
    return " ".join(part for part in (source.dataset, source.name) if part)
