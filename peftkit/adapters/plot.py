"""Pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftkit.adapters.inspect import ModuleUpdate
from peftkit.errors import InputError

__all__ = ["plot_updates"]

_SUFFIXES = (".png", ".svg", ".pdf")


def plot_updates(updates: Sequence[ModuleUpdate], title: str, place: Path) -> None:
    """A map of how far each weight moves: layers from left to right, targets from top to bottom.

    Raises:
        InputError: the file's name says no kind of picture, or there is no such folder.
    """
    if place.suffix.lower() not in _SUFFIXES or not place.parent.is_dir():
        remedy = f"Name a file that ends in {', '.join(_SUFFIXES)}, in a folder that is there."
        raise InputError("is no place for a picture.", where=str(place), remedy=remedy)
    from matplotlib.figure import Figure  # takes half a second; without pyplot no window system is asked

    numbered = sorted({update.layer for update in updates if update.layer is not None})
    layers: list[int | None] = [*numbered, *([None] if any(update.layer is None for update in updates) else [])]
    targets = sorted({update.target for update in updates})
    relative = all(update.relative_norm is not None for update in updates)
    values = {
        (update.target, update.layer): (update.relative_norm if relative else update.norm) or 0.0 for update in updates
    }
    table = [[values.get((target, layer), float("nan")) for layer in layers] for target in targets]
    figure = Figure(figsize=(max(5.0, 2.6 + 0.62 * len(layers)), 1.5 + 0.5 * len(targets)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table, cmap="viridis", aspect="auto", vmin=0)
    axes.set_xticks(range(len(layers)), ["" if layer is None else str(layer) for layer in layers])
    axes.set_yticks(range(len(targets)), targets)
    axes.set_xlabel("layer")
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_xticks([edge - 0.5 for edge in range(1, len(layers))], minor=True)
    axes.set_yticks([edge - 0.5 for edge in range(1, len(targets))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    _write_values(axes, table)
    figure.colorbar(image, ax=axes, label="‖ΔW‖ / ‖W‖" if relative else "‖ΔW‖")
    figure.savefig(place, dpi=150)


def _write_values(axes: object, table: Sequence[Sequence[float]]) -> None:
    """The number in each field, dark on the bright ones."""
    highest = max((value for row in table for value in row if value == value), default=0.0)
    for line, row in enumerate(table):
        for column, value in enumerate(row):
            colour = "black" if value > 0.6 * highest else "white"
            text = "" if value != value else f"{value:.3f}"
            axes.text(column, line, text, ha="center", va="center", color=colour, fontsize="small")  # type: ignore[attr-defined]
