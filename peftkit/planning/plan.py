"""What a run will take: memory, time, and room on the disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from peftkit import console
from peftkit.planning.duration import Duration, Schedule
from peftkit.planning.hardware import Decision
from peftkit.planning.memory import Fit, optimizer_bytes
from peftkit.recipe.hyperparameters import Training

__all__ = ["DiskNeed", "Plan", "disk_need"]

_TIMES = {"seconds": "train_seconds", "low": "train_seconds_low", "high": "train_seconds_high"}

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

    @property
    def fits(self) -> bool:
        """Whether memory and disk are enough."""
        return self.peak_memory_bytes <= self.limit_bytes and self.disk.total <= self.free_bytes

    def summary(self, training: Training) -> str:
        """One line for a person, at the head of a run."""
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs:.3g} epochs"
        tokens = f", {self.train_tokens:,} tokens" if self.train_tokens else ""
        each = f" in each of {self.processes} processes" if self.processes > 1 else ""
        return (
            f"{self.steps:,} steps of {training.effective_batch} sequences, {epochs}{tokens}; about "
            f"{console.size(self.peak_memory_bytes)} of {console.size(self.limit_bytes)} memory{each} and "
            f"{console.size(self.disk.total)} on the disk"
        )

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
class DiskNeed:
    """Bytes of what a run writes."""

    checkpoint_bytes: int
    checkpoints: int
    """That are there at once, at the most: a new one is whole before an old one goes."""

    output_bytes: int

    @property
    def total(self) -> int:
        """All of it together."""
        return self.checkpoint_bytes * self.checkpoints + self.output_bytes


def disk_need(training: Training, trainable: int, sequences: int | None, embeddings: int = 0) -> DiskNeed:
    """What a run will write: trained weights and optimizer state for each checkpoint, and the weights once more.

    Args:
        training: how often it saves, and with which optimizer.
        trainable: parameters that are trained; they are float32.
        sequences: of the training data; None for a stream, whose run is one epoch.
        embeddings: of the trained parameters, those of embeddings, whose state stays float32 with 8-bit optimizers.
    """
    state_bytes = optimizer_bytes(training.optim, trainable, embeddings)
    checkpoint = _FLOAT * trainable + state_bytes + _OTHER_BYTES
    kept = Schedule(training, sequences).saves
    if training.save_total_limit is not None:
        best = bool((training.model_extra or {}).get("load_best_model_at_end"))
        kept = min(kept, training.save_total_limit + 1 + best)
    return DiskNeed(checkpoint, kept, trainable * _FLOAT + _OTHER_BYTES)
