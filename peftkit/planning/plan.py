"""What a run will take: memory, time from its steps and their speed, and disk space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from peftkit import console
from peftkit.planning.decisions import ChosenPrecision
from peftkit.planning.hardware import Decision, Hardware
from peftkit.planning.memory import Fit, optimizer_bytes
from peftkit.recipe.hyperparameters import Training

__all__ = [
    "DiskNeed", "Duration", "Plan", "Schedule", "computed_duration", "disk_need", "duration", "operations_of_a_token",
]  # fmt: skip

_USED, _USED_AT_LEAST, _USED_AT_MOST = 0.3, 0.15, 0.5
"""Share of a device's published rate that training reaches: 21% to 46% with large models (Chowdhery et al. 2022,
table 3); small ones, which keep a device less busy, below that."""

_TIMES = {"seconds": "train_seconds", "low": "train_seconds_low", "high": "train_seconds_high"}
_SAVE_STEPS = 500  # of TrainingArguments
_FLOAT = 4
_OTHER_BYTES = 4_000_000  # tokenizer, configuration, card, metrics


@dataclass(frozen=True)
class Plan:
    """One method of a recipe, on one device."""

    method: str
    device: str
    precision: str
    measured: bool
    """Whether memory and time were measured on steps of the run itself; otherwise they are computed."""

    trainable_parameters: int
    total_parameters: int
    processes: int
    """That train together; memory and time are those of each."""

    sequences: int | None
    """Of an epoch; None for a stream."""

    steps: int
    epochs: float
    train_tokens: int | None
    """Tokens of all steps together, without padding; None for a stream."""

    memory: dict[str, int]
    """Bytes by what they are for: `weights`, `gradients`, `optimizer`, `activations`, `logits`, `end`, which is what
    the end of the run needs beyond a step, and `runtime`, which is the rest: libraries, data and what allocators keep,
    or a GPU's context. They add up to the peak."""

    peak_memory_bytes: int
    limit_bytes: int
    """That the device has for it."""

    would_fit: list[Fit]
    """Changes with which it would fit, where it does not."""

    disk: DiskNeed
    free_bytes: int
    """Of the disk that the run folder is on."""

    train_seconds: Duration | None
    """None where nothing is known of the device's speed."""

    decisions: list[Decision[Any]]
    """What the machine decides of it, with the reasons."""

    warnings: list[str]
    uncounted: str | None = None
    """Why the activations could not be counted, so that the peak is without them; None where they are in it."""

    @property
    def fits(self) -> bool:
        """Whether memory and disk are enough."""
        return self.peak_memory_bytes <= self.limit_bytes and self.disk.total <= self.free_bytes

    def summary(self, effective_batch: int) -> str:
        """One line for a person, at the head of a run, whose steps have so many sequences."""
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs:.3g} epochs"
        tokens = f", {self.train_tokens:,} tokens" if self.train_tokens else ""
        each = f" in each of {self.processes} processes" if self.processes > 1 else ""
        least = "at least" if self.uncounted else "about"
        return (
            f"{self.steps:,} steps of {effective_batch} sequences, {epochs}{tokens}; {least} "
            f"{console.size(self.peak_memory_bytes)} of {console.size(self.limit_bytes)} memory{each} and "
            f"{console.size(self.disk.total)} on the disk"
        )

    def what_is_missing(self) -> str | None:
        """One line on the part that could not be counted; None where all of it was."""
        if not self.uncounted:
            return None
        return f"activations are not counted, as the model cannot be walked without weights: {self.uncounted}"

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON value, by the names that manifests use."""
        values = asdict(self)
        time = values.pop("train_seconds") or dict.fromkeys(_TIMES)
        return {**values, **{name: time[part] for part, name in _TIMES.items()}, "fits": self.fits}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Plan:
        """The plan that `to_json` gave."""
        rest = {name: value for name, value in values.items() if name not in (*_TIMES.values(), "fits")}
        time = Duration(**{part: values[name] for part, name in _TIMES.items()})
        rest["would_fit"] = [Fit(**fit) for fit in rest["would_fit"]]
        rest["decisions"] = [Decision.from_json(decision) for decision in rest["decisions"]]
        rest["disk"] = DiskNeed(**rest["disk"])
        return cls(**rest, train_seconds=None if values["train_seconds"] is None else time)


@dataclass(frozen=True)
class Schedule:
    """The steps of a run with data of a known length, or of a stream."""

    training: Training
    sequences: int | None
    """Of an epoch; None for a stream, whose run is one epoch."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.steps if self.sequences is None else math.ceil(self.sequences / self.training.effective_batch)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        if self.training.max_steps > 0:
            return self.training.max_steps
        of_an_epoch = math.ceil((self.sequences or 1) / self.training.effective_batch)
        return math.ceil(self.training.num_train_epochs * of_an_epoch)

    @property
    def epochs(self) -> float:
        """Times that the data is seen."""
        return self.steps / self.steps_per_epoch

    @property
    def saves(self) -> int:
        """Checkpoints that are written, the one after the last step included."""
        return math.ceil(self._times(self.training.save_strategy, "save_steps", _SAVE_STEPS))

    @property
    def evaluations(self) -> int:
        """Evaluations while it trains, without those before the first step and after the last."""
        return math.floor(self._times(self.training.eval_strategy, "eval_steps", self.training.logging_steps))

    def _times(self, strategy: str, field: str, default: float) -> float:
        if strategy == "no":
            return 0
        if strategy == "epoch":
            return math.ceil(self.epochs)
        every = float((self.training.model_extra or {}).get(field) or default)  # below 1, a share of all steps
        return self.steps / (every if every >= 1 else math.ceil(self.steps * every))


@dataclass(frozen=True)
class Duration:
    """Seconds of a run's training loop, evaluations and checkpoints included."""

    seconds: float
    low: float | None
    high: float | None
    """The 95 percent interval if the measured steps are like all others, or that of the shares of its rate which a
    device usually reaches; None where one step says nothing about that."""


def duration(
    schedule: Schedule, step_seconds: Sequence[float], evaluation_seconds: float = 0.0, save_seconds: float = 0.0
) -> Duration:
    """The time of a run by measurements of optimizer steps, one evaluation and one checkpoint.

    The steps are given without the first, which warms up.
    """
    beside = schedule.evaluations * evaluation_seconds + schedule.saves * save_seconds
    seconds = schedule.steps * fmean(step_seconds) + beside
    measured = len(step_seconds)
    if measured < 2:
        return Duration(seconds, None, None)
    # of the mean of the steps that were measured, and of the sum of those that will be
    error = stdev(step_seconds) * math.sqrt(schedule.steps**2 / measured + schedule.steps)
    reach = float(stdtrit(measured - 1, 0.975)) * error
    return Duration(seconds, max(beside, seconds - reach), seconds + reach)


def operations_of_a_token(parameters: int, *, trains_all: bool) -> int:
    """Additions and multiplications of one token's forward and backward pass (Kaplan et al. 2020, section 2.1).

    Each weight in a matmul, the head's included and the embeddings' not, has two in the forward pass and four in the
    backward pass, of which two are for its own gradient: these are spared where it is not trained.
    """
    return parameters * (6 if trains_all else 4)


def computed_duration(hardware: Hardware, precision: ChosenPrecision, operations: float | None) -> Duration | None:
    """The time of so many operations on a device, without evaluations and checkpoints; None if its rate is unknown."""
    rate = hardware.flops_fp32 if precision == "fp32" else hardware.flops_16bit
    if rate is None or operations is None:
        return None
    seconds = operations / rate
    return Duration(seconds / _USED, seconds / _USED_AT_MOST, seconds / _USED_AT_LEAST)


@dataclass(frozen=True)
class DiskNeed:
    """Bytes of what a run writes."""

    checkpoint_bytes: int
    checkpoints: int
    """That are there at once, at the most: a new one is whole before an old one is removed."""

    output_bytes: int

    @property
    def total(self) -> int:
        """All of it together."""
        return self.checkpoint_bytes * self.checkpoints + self.output_bytes


def disk_need(schedule: Schedule, trainable: int, embeddings: int = 0) -> DiskNeed:
    """What a run will write: trained weights and optimizer state for each checkpoint, and the weights once more.

    For `trainable` and `embeddings`, see `optimizer_bytes`.
    """
    training = schedule.training
    checkpoint = _FLOAT * trainable + optimizer_bytes(training.optim, trainable, embeddings) + _OTHER_BYTES
    kept = schedule.saves
    if training.save_total_limit is not None:
        best = bool((training.model_extra or {}).get("load_best_model_at_end"))
        kept = min(kept, training.save_total_limit + 1 + best)
    return DiskNeed(checkpoint, kept, trainable * _FLOAT + _OTHER_BYTES)
