"""What adapters hold: how far each moves the weights of its base, as figures and as a plot, and a list of them.

A list needs no torch, and neither do figures without the base.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftkit import console
from peftkit.adapters.files import AS_RECORDED, CONFIG_NAME, Adapter, Floats, GivenBase
from peftkit.errors import InputError, PeftkitError, TargetError
from peftkit.runs.folder import ADAPTER_FOLDER

__all__ = [
    "Listing", "ModuleUpdate", "WholeUpdate", "inspect_modules", "inspect_whole", "kinds_of", "list_adapters",
    "place_of", "plot_updates",
]  # fmt: skip

WeightOf = Callable[[str], Floats | None]
"""The base's parameter of a name, a module's weight as [out, in]; None where the base is not at hand."""

_SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class ModuleUpdate:
    """What an adapter does to one weight, W + ΔW; see `Size`."""

    module: str
    layer: int | None
    target: str
    """The module's name inside its layer."""

    rank: int | None
    """None where the update is no product of two matrices."""

    scaling: float | None
    norm: float | None
    relative_norm: float | None
    """‖ΔW‖ / ‖W‖; None where the base is not at hand."""

    effective_rank: float | None
    largest: float | None
    untouched: bool
    """It is as it was before training: nothing was learned here."""


@dataclass(frozen=True)
class WholeUpdate:
    """What an adapter puts in the place of a parameter of the base."""

    name: str
    shape: list[int]
    relative_norm: float | None
    """‖new - old‖ / ‖old‖; None where the base is not at hand, or had another shape."""


@dataclass(frozen=True)
class AdapterReport:
    """What is in an adapter."""

    adapter: str
    base: str | None
    method: str | None
    parameters: int
    bytes: int
    use_dora: bool
    not_finite: list[str]
    """Tensors with a NaN or an infinity."""

    untouched: list[str]
    """Modules whose update is as it was before training."""

    beginning: str
    """What such an update is, as `its B is all zeros`."""

    modules: list[ModuleUpdate]
    whole: list[WholeUpdate]
    base_at_hand: bool
    """Whether the sizes of the base's own weights, which `relative_norm` is to, could be measured."""


def inspect_adapter(folder: Path, given: GivenBase = AS_RECORDED) -> AdapterReport:
    """Measure every update of an adapter, against the base's weights where these are at hand.

    Raises:
        TargetError: it cannot be read.
    """
    adapter = Adapter.read(folder)
    broken = adapter.not_finite
    weight_of = None if broken else _weight_reader(adapter, given)  # there is nothing to measure in them
    modules = [] if broken else inspect_modules(adapter, weight_of or _no_weight)
    return AdapterReport(
        adapter=str(adapter.folder),
        base=adapter.base_name,
        method=adapter.record.recipe.method if adapter.record else None,
        parameters=adapter.parameters,
        bytes=adapter.bytes,
        use_dora=bool(adapter.config.get("use_dora")),
        not_finite=broken,
        untouched=[module.module for module in modules if module.untouched],
        beginning=adapter.method.beginning,
        modules=modules,
        whole=[] if broken else inspect_whole(adapter, weight_of or _no_weight),
        base_at_hand=weight_of is not None,
    )


def inspect_modules(adapter: Adapter, weight_of: WeightOf) -> list[ModuleUpdate]:
    """The update of every module, in the order of the layers.

    Where the base is at hand, DoRA's is the whole change of the weight; otherwise it is that of its direction alone.
    """
    found = []
    for name, update in sorted(adapter.updates.items(), key=lambda item: _natural(item[0])):
        weight = weight_of(f"{name}.weight")
        size = update.size(weight)
        own = {"rank": update.rank, "untouched": update.untouched, **size._asdict()}
        relative = None if size.norm is None else _relative(size.norm, weight)
        found.append(ModuleUpdate(name, *place_of(name), relative_norm=relative, **own))
    return found


def inspect_whole(adapter: Adapter, weight_of: WeightOf) -> list[WholeUpdate]:
    """The parameters that were trained whole."""
    found = []
    for name, new in adapter.whole.items():
        old = weight_of(name)
        if old is not None and old.shape != new.shape:
            old = old.T  # a Conv1D's weight, which is given as a Linear's
        is_known = old is not None and old.shape == new.shape
        change = _relative(float(np.linalg.norm(new - np.asarray(old))), old) if is_known else None
        found.append(WholeUpdate(name, list(new.shape), change))
    return found + [
        WholeUpdate(f"rows of {name}", list(rows.values.shape), None) for name, rows in adapter.rows.items()
    ]


def place_of(module: str) -> tuple[int | None, str]:
    """The number of the layer that a module is in, and its name there."""
    parts = re.fullmatch(r".*?\.(\d+)\.(.+)", module)
    return (int(parts[1]), parts[2]) if parts else (None, module)


def kinds_of(modules: Iterable[str]) -> list[str]:
    """The names that modules have inside their layers, each once."""
    return list(dict.fromkeys(place_of(module)[1] for module in modules))


def _weight_reader(adapter: Adapter, given: GivenBase) -> WeightOf | None:
    """Reads the base's parameters; None where the base is not at hand."""
    from peftkit.adapters.target import find_held_base
    from peftkit.models.base import BaseWeights

    try:
        held = find_held_base(adapter, given)
    except PeftkitError as error:
        console.warning(f"{error} Without the base, its weights cannot be compared with.")
        return None
    return BaseWeights(held.base.folder, held.structure()).numbers


def _no_weight(name: str) -> None:
    del name


def _relative(norm: float, weight: Floats | None) -> float | None:
    size = float(np.linalg.norm(weight)) if weight is not None else 0.0
    return norm / size if size else None


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts layer 2 before layer 10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in name.split("."))


@dataclass(frozen=True)
class Listing:
    """One adapter in a few words; None is what is not known."""

    adapter: str
    base: str | None
    method: str | None
    ranks: list[int]
    """The ranks of its modules, each once."""

    targets: list[str]
    """Names of its modules inside their layers, each once."""

    bytes: int
    perplexity: float | None
    base_perplexity: float | None
    fault: str | None
    """Why it cannot be used."""


def list_adapters(folder: Path) -> list[Listing]:
    """Every adapter in a folder and below it, by path; hidden folders are left out.

    Raises:
        TargetError: there is no such folder.
    """
    if not folder.is_dir():
        raise TargetError("there is no such folder.", where=str(folder))
    configs = sorted(folder.rglob(CONFIG_NAME))
    shown = (each for each in configs if not any(part.startswith(".") for part in each.relative_to(folder).parts))
    return [_listing(config.parent, folder) for config in shown]


def _listing(place: Path, folder: Path) -> Listing:
    name = str(place.parent if place.name == ADAPTER_FOLDER and place != folder else place)  # a run goes by its own
    try:
        adapter = Adapter.read(place)
        updates, record = adapter.updates, adapter.record
    except TargetError as error:
        return Listing(name, None, None, [], [], 0, None, None, error.what)
    return Listing(
        adapter=name,
        base=adapter.base_name,
        method=record.recipe.method if record else None,
        ranks=sorted({each.rank for each in updates.values() if each.rank is not None}),
        targets=kinds_of(updates),
        bytes=adapter.bytes,
        perplexity=record.metrics.get("perplexity") if record else None,
        base_perplexity=record.metrics.get("base_perplexity") if record else None,
        fault=None,
    )


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
    for axis, fields in ((axes.xaxis, layers), (axes.yaxis, targets)):
        axis.set_ticks([edge - 0.5 for edge in range(1, len(fields))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    highest = max((value for row in table for value in row if value == value), default=0.0)
    for line, row in enumerate(table):
        for column, value in enumerate(row):  # a number is dark on the bright fields
            colour = "black" if value > 0.6 * highest else "white"
            text = "" if value != value else f"{value:.3f}"
            axes.text(column, line, text, ha="center", va="center", color=colour, fontsize="small")
    figure.colorbar(image, ax=axes, label="‖ΔW‖ / ‖W‖" if relative else "‖ΔW‖")
    figure.savefig(place, dpi=150)
