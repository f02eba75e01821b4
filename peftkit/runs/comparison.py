"""What a comparison of several runs found: `comparison.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from peftkit.errors import TargetError
from peftkit.storage import read_json

__all__ = ["COMPARISON_NAME", "Against", "Comparison", "Entry", "Expected", "Statistic"]

COMPARISON_NAME = "comparison.json"


@dataclass(frozen=True)
class Statistic:
    """One metric of an entry, with the values in the order of its seeds; one seed gives no standard error."""

    mean: float
    standard_error: float | None
    values: list[float]


@dataclass(frozen=True)
class Against:
    """The difference of an entry's metric to the best entry's, both over their seeds.

    `low` and `high` are its 95 percent confidence interval (Welch 1947); None for one seed. The verdict is `noise`
    where the interval holds 0, and `unknown` for one seed.
    """

    difference: float
    low: float | None
    high: float | None
    verdict: Literal["best", "noise", "worse", "unknown"]


@dataclass(frozen=True)
class Entry:
    """One line of the table: a method with its settings, over its seeds; or the untouched base, without a method.

    Attributes:
        name: as `lora`, `lora r=4`, `base` or `base in nf4`.
        method: None for the base.
        changes: fields that differ from the recipe: what was varied, and a learning rate that was chosen.
        runs: the run folders, in the order of the seeds, relative to the comparison's folder.
        metrics: of quality, of cost, and of written completions, by the names of `peftkit.metrics`.
        against_best: by the metric of the comparison; None for the base.
    """

    name: str
    method: str | None
    changes: dict[str, Any]
    runs: list[str]
    metrics: dict[str, Statistic]
    against_best: Against | None = None


@dataclass(frozen=True)
class Expected:
    """What the recipe expects of an entry, and the value, None where it was not measured.

    Its distance from the band is 0 in it, negative below it, and positive above it.
    """

    entry: str
    metric: str
    band: str
    source: str
    value: float | None
    distance: float | None


@dataclass(frozen=True)
class Comparison:
    """The content of `comparison.json`."""

    recipe: str
    """The file or the name of the shipped recipe."""

    by: str
    """The metric that entries are compared by."""

    higher_is_better: bool
    seeds: list[int]
    entries: list[Entry]
    warnings: list[str] = field(default_factory=list)
    expected: list[Expected] = field(default_factory=list)
    tried: list[dict[str, Any]] = field(default_factory=list)
    """Learning rates that were tried: `entry`, `learning_rate`, `run`, `eval_loss` and `chosen`."""

    def to_json(self) -> dict[str, Any]:
        """The comparison as a JSON value."""
        return asdict(self)

    @classmethod
    def read(cls, folder: Path) -> Comparison:
        """The comparison in a folder.

        Raises:
            TargetError: there is none, or it is damaged.
        """
        place = folder / COMPARISON_NAME
        try:
            values = read_json(place)
            values["entries"] = [_entry(entry) for entry in values["entries"]]
            values["expected"] = [Expected(**each) for each in values["expected"]]
            return cls(**values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            remedy = "Name the folder of a comparison."
            raise TargetError("is missing or damaged.", where=str(place), remedy=remedy) from error


def _entry(values: dict[str, Any]) -> Entry:
    against = values["against_best"]
    metrics = {name: Statistic(**statistic) for name, statistic in values["metrics"].items()}
    return Entry(**{**values, "metrics": metrics, "against_best": Against(**against) if against else None})
