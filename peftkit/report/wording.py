"""Numbers and names as people read them."""

from __future__ import annotations

from typing import Any

from peftkit import console

__all__ = [
    "METHODS",
    "TIMES",
    "UNKNOWN",
    "count",
    "duration",
    "metric_name",
    "metric_value",
    "plain",
    "rate",
    "share",
    "size",
    "small",
]

METHODS = {"full": "Full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
"""What the methods are called at the start of a sentence."""

TIMES = "\N{MULTIPLICATION SIGN}"
UNKNOWN = "not known"
"""Stands where a number would."""

_NAMES = {
    "eval_loss": "validation loss",
    "perplexity": "perplexity",
    "base_perplexity": "perplexity before",
    "trainable_parameters": "trained parameters",
    "tokens_per_second": "tokens a second",
    "train_seconds": "time",
    "peak_memory_bytes": "peak memory",
    "output_bytes": "on disk",
    "exact_match": "exact match",
    "bleu": "BLEU",
    "chrf": "chrF",
    "ter": "TER",
    "rouge_l": "ROUGE-L",
}


def metric_name(name: str) -> str:
    """What a metric is called."""
    return _NAMES.get(name, name.replace("_", " "))


def metric_value(name: str, value: float | None) -> str:
    """A metric with its unit."""
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith("_seconds"):
        return duration(value)
    if name.endswith("_parameters") or name == "tokens_per_second":
        return count(value)
    return small(value)


def count(value: float | None) -> str:
    """A whole number with commas."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def small(value: float | None) -> str:
    """A measured number, to four digits."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def rate(value: float | None) -> str:
    """Tokens for each second."""
    return UNKNOWN if value is None else f"{value:,.0f} tokens/s"


def share(part: float | None, whole: float | None) -> str:
    """A part of a whole in percent."""
    if part is None or not whole:
        return UNKNOWN
    return "100%" if part >= 0.995 * whole else f"{100 * part / whole:.3g}%"


def size(value: float | None) -> str:
    """A number of bytes."""
    return UNKNOWN if value is None else console.size(round(value))


def duration(seconds: float | None) -> str:
    """A time, to two parts."""
    return UNKNOWN if seconds is None else console.duration(seconds)


def plain(value: Any) -> str:
    """A field's value, as a recipe writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(plain, value)) or "none"
    return str(value)
