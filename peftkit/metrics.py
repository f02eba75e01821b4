"""Every metric, declared once: its label, unit, direction and meaning. Files, tables, cards and reports name it alike.

A metric has the same name in `manifest.json`, `comparison.json`, every `--json` and a recipe's `expect`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from peftkit import console

__all__ = ["METRICS", "UNKNOWN", "Metric", "count", "duration", "in_group", "plain", "share", "size", "small"]

UNKNOWN: Final = "not known"
"""Stands in place of a number."""

Group = Literal["quality", "completions", "cost", "run"]
"""How good the model is on the validation data, how good its completions are, what it cost, and everything else."""

_COUNTED = ("parameters", "tokens", "tokens/s", "steps", "checkpoints")
"""Units of whole numbers."""


@dataclass(frozen=True)
class Metric:
    """One figure that is measured."""

    name: str
    label: str  # in tables and reports
    group: Group
    unit: str  # empty for a figure without one
    better: Literal["lower", "higher"] | None
    meaning: str
    decimals: int | None = None  # digits after the point; None for four digits in all
    in_terminal: bool = True  # whether the terminal's tables, which are narrow, show it

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        return f"{self.better} is better" if self.better else "neither higher nor lower is better"

    def text(self, value: float | None) -> str:
        """A value as people read it."""
        if value is None:
            return UNKNOWN
        if self.unit == "bytes":
            return size(value)
        if self.unit == "seconds":
            return duration(value)
        if self.unit in _COUNTED:
            return count(value)
        if self.decimals is not None:
            return f"{value:.{self.decimals}f}"
        return small(value) if abs(value) >= 1000 else f"{value:#.4g}"

    def mean_text(self, mean: float, standard_error: float | None) -> str:
        """A mean over seeds; of a metric of quality with its standard error, if that is known."""
        if standard_error is None or self.group == "cost":
            return self.text(mean)
        return f"{self.text(mean)} ± {standard_error:.2g}"


def _validation(name: str, label: str, meaning: str, unit: str = "") -> Metric:
    return Metric(name, label, "quality", unit, "lower", meaning)


def _cost(name: str, label: str, unit: str, meaning: str, better: Literal["lower", "higher"] = "lower") -> Metric:
    return Metric(name, label, "cost", unit, better, meaning)


def _completions(name: str, label: str, meaning: str, decimals: int = 1, *, lower: bool = False, main: bool) -> Metric:
    return Metric(name, label, "completions", "", "lower" if lower else "higher", meaning, decimals, in_terminal=main)


_TER = "Edits for each 100 words of the references (Snover et al. 2006), by sacrebleu."
_ROUGE_L = "F1, 0 to 100 (Lin 2004), of each completion's nearest reference."
_TRAIN_TOKENS = "Tokens that the model was trained on, without padding, over all epochs, in all processes together."
_TOKENS_PER_SECOND = "Useful tokens for each second of the training steps alone."
_TRAIN_SECONDS = "Time of the training loop, its evaluations and checkpoints included."
_PEAK_MEMORY = (
    "From the first step to the end of the run: of the GPU, or the process's largest resident set on a CPU; "
    "of several processes, the largest."
)
_CHECKPOINT_SECONDS = "Time that training waited for checkpoints to be written."

METRICS: Final[Mapping[str, Metric]] = {
    metric.name: metric
    for metric in (
        _validation("base_perplexity", "perplexity before", "Perplexity of the validation data before the first step."),
        _validation("perplexity", "perplexity", "The exponential of the validation loss."),
        _validation(
            "eval_loss", "validation loss", "Mean over the tokens in the loss of the validation data.", "nats/token"
        ),
        _completions("exact_match", "exact match", "Share of completions that equal a reference.", 3, main=True),
        _completions("bleu", "BLEU", "0 to 100 (Papineni et al. 2002), of the corpus, by sacrebleu.", main=True),
        _completions("chrf", "chrF", "chrF2, 0 to 100 (Popović 2015), by sacrebleu.", main=False),
        _completions("ter", "TER", _TER, lower=True, main=False),
        _completions("rouge_l", "ROUGE-L", _ROUGE_L, main=True),
        Metric("train_loss", "training loss", "run", "nats/token", "lower", "Mean over the last logged steps."),
        _cost("trainable_parameters", "trained parameters", "parameters", "Parameters that are trained."),
        Metric("total_parameters", "all parameters", "run", "parameters", None, "Parameters of base and adapter."),
        Metric("train_tokens", "tokens trained on", "run", "tokens", None, _TRAIN_TOKENS),
        _cost("tokens_per_second", "tokens/s", "tokens/s", _TOKENS_PER_SECOND, "higher"),
        _cost("train_seconds", "time", "seconds", _TRAIN_SECONDS),
        _cost("peak_memory_bytes", "peak memory", "bytes", _PEAK_MEMORY),
        _cost("output_bytes", "on disk", "bytes", "Size of the weights that the run made."),
        Metric("skipped_steps", "steps skipped", "run", "steps", "lower", "Steps left out by `on_nonfinite: skip`."),
        Metric("checkpoints", "checkpoints", "run", "checkpoints", None, "Checkpoints written."),
        Metric("checkpoint_seconds", "time of checkpoints", "run", "seconds", "lower", _CHECKPOINT_SECONDS),
    )
}
"""By name, in the order in which reports show them."""


def in_group(*groups: Group) -> dict[str, Metric]:
    """The metrics of some groups, by name."""
    return {name: metric for name, metric in METRICS.items() if metric.group in groups}


def count(value: float | None) -> str:
    """A whole number with commas."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def small(value: float | None) -> str:
    """A measured number, to four digits."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


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
