"""What peftkit aims at on a GPU, and whether a benchmark has met it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.gpu.harness import Outcome

__all__ = ["Goal", "goals"]

_PUBLISHED: Final = 12_473
"""Tokens/s of NeMo AutoModel's performance summary, 2026: Llama3 8B, LoRA, one H100, 2 rows of 4,096 tokens in a pass,
16 passes in a step, bf16, 402 TFLOP/s."""

_SPEED, _TO_TRL, _OFF, _MORE = 12_500, 1.3, 0.1, 0.001


@dataclass(frozen=True)
class Goal:
    """An aim and what was measured of it."""

    goal: str
    measured: str
    status: str
    """met, not met or not measured."""


def goals(outcomes: Sequence[Outcome], machine: Mapping[str, Any], *, smoke: bool) -> list[Goal]:
    """Every goal, with what the parts have measured; tiny shapes and a CPU measure none."""
    parts = {outcome.part: outcome for outcome in outcomes if machine["device"] == "cuda" and not smoke}
    speeds = _figures(parts, "llama-lora", "tokens/s", "peftkit") + _figures(parts, "full-rows", "tokens/s", "peftkit")
    speed = max(speeds, default=None) if "H100" in machine["name"] else None
    waits = _figures(parts, "profile", "waits a step") + _figures(parts, "profile", "warned")
    for part in ("llama-lora", "llama-qlora", "full-rows"):
        waits += _figures(parts, part, "waits", "peftkit")
    ratios = _figures(parts, "estimates", "ratio")
    if ratios:  # of GPT-2; the larger shapes alone would say too little
        for part in ("llama-lora", "llama-qlora", "full-rows"):
            ratios += _figures(parts, part, "planned of peak")
    off = max((abs(ratio - 1) for ratio in ratios), default=None)
    more = max((ratio - 1 for ratio in _figures(parts, "end", "ratio")), default=None)
    to_trl = max(_figures(parts, "llama-lora", "peftkit to it", "trl"), default=None)
    published = f"NeMo AutoModel publishes {_PUBLISHED:,}"
    return [
        _goal(
            f"Llama-3.1-8B LoRA on an H100 above {_SPEED:,} tokens/s ({published})",
            None if speed is None else f"{speed:,.0f} tokens/s",
            speed is not None and speed > _SPEED,
        ),
        _goal(
            f"Llama-3.1-8B LoRA above {_TO_TRL} times TRL's tokens/s in one run",
            None if to_trl is None else f"{to_trl:.2f} times",
            to_trl is not None and to_trl > _TO_TRL,
        ),
        _goal(
            "the host waits for the device at most once a step",
            f"{max(waits):.1f} a step" if waits else None,
            bool(waits) and max(waits) <= 1,
        ),
        _goal(
            f"the estimate is within {_OFF:.0%} of the measured peak",
            None if off is None else f"{off:.0%} off at most",
            off is not None and off <= _OFF,
        ),
        _goal(
            "the end of a run adds nothing to the peak",
            None if more is None else f"{more:.1%} more at most",
            more is not None and more <= _MORE,
        ),
    ]


def _goal(goal: str, measured: str | None, is_met: bool) -> Goal:
    if measured is None:
        return Goal(goal, "", "not measured")
    return Goal(goal, measured, "met" if is_met else "not met")


def _figures(parts: Mapping[str, Outcome], part: str, column: str, row: str | None = None) -> list[float]:
    """The numbers in a column of a part, of one row or of all; none if the part was not run."""
    rows = parts[part].rows if part in parts else []
    found = [each.figures.get(column) for each in rows if row is None or each.what == row]
    return [float(value) for value in found if isinstance(value, int | float)]
