"""The record of a run: `manifest.json`, with the metrics that every command calls by the same names."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["RunManifest", "RunMetrics", "Status"]

Status = Literal["running", "interrupted", "stopped", "failed", "finished"]
"""`interrupted` is never written: so is a run that says `running` while no process holds its folder."""


@dataclass
class RunMetrics:
    """What was measured, by the names of `peftkit.metrics`; None is what is not known."""

    trainable_parameters: int | None = None
    total_parameters: int | None = None
    train_tokens: int | None = None
    train_seconds: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    perplexity: float | None = None
    base_perplexity: float | None = None
    skipped_steps: int | None = None
    checkpoints: int | None = None
    checkpoint_seconds: float | None = None


@dataclass
class RunManifest:
    """The content of `manifest.json`."""

    name: str
    method: str
    recipe_sha256: str
    base: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str | None]
    hardware: dict[str, Any]
    precision: str | None = None
    world_size: int = 1
    """Processes that trained together."""

    run_id: str = field(default_factory=lambda: secrets.token_hex(8))
    """Tells this run's checkpoints from those of any other."""

    status: Status = "running"
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    resumed: list[dict[str, Any]] = field(default_factory=list)
    """Each time that the run was resumed: from which step, past which checkpoints, and with which changes."""

    auto_batch: dict[str, list[int]] | None = None
    """Batch size and accumulation as the recipe had them (`recipe`), and as they fitted into memory (`used`). Where an
    evaluation did not fit, also the rows of its batch, as the recipe had them and as they fitted (`evaluation`)."""

    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the recipe, the metrics, the audit and the samples, once the run has ended."""

    outputs: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file of the output, by its path in the run folder."""

    metrics: RunMetrics = field(default_factory=RunMetrics)

    def to_json(self) -> dict[str, Any]:
        """The manifest as a JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunManifest:
        """The manifest that `to_json` gave.

        Raises:
            TypeError: the value lacks a field or has one too many.
        """
        return cls(**{**values, "metrics": RunMetrics(**values["metrics"])})
