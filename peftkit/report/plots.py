"""Pictures of a run's curves, an adapter's norms and a comparison's entries: for a report, and for a terminal."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peftkit.metrics import METRICS, count, small
from peftkit.report.content import ComparisonContent, LayerUpdate, RunContent

__all__ = [
    "LOGARITHMIC", "SERIES", "Plot", "bare", "comparison_plot", "draw_curves", "loss_plot", "norms_plot",
    "overlay_plot", "schedule_plots", "series", "thinned",
]  # fmt: skip

TEXT, GRID = "#010203", "#020304"
SERIES = tuple(f"#0304{number:02x}" for number in range(1, 7))
"""Stand for the page's colours while a figure is drawn: no other number of the drawing looks like them."""

_VARIABLES = {TEXT: "currentColor", GRID: "var(--rule)"} | {
    mark: f"var(--series-{number})" for number, mark in enumerate(SERIES, start=1)
}
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine lays out the same
    "font.size": 9.5,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.7,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), TEXT),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), GRID),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("text.parse_math", "axes.spines.top", "axes.spines.right", "legend.frameon"), False),
}


@dataclass(frozen=True)
class Plot:
    """A picture and what it says to who does not see it."""

    title: str
    description: str
    svg: str


def drawn(figure: Any, key: str, title: str, description: str) -> Plot:
    """The figure as an `svg` element."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return Plot(title, description, bare(file.getvalue(), key, title, description))


def bare(svg: str, key: str, title: str, description: str) -> str:
    """What matplotlib wrote without what only a file needs, named and in the page's colours."""
    svg = svg[svg.index("<svg") :]
    for pattern in (r"<metadata>.*?</metadata>", r"<style[^>]*>.*?</style>", r"<!--.*?-->", r"<defs>\s*</defs>"):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)  # its style would hold for the whole page
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{key}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)  # a hundredth of a point
    for mark, variable in _VARIABLES.items():
        svg = svg.replace(mark, variable)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg {box[0] if box else ""} role="img" aria-labelledby="{key}-t {key}-d">'
    named = f'<title id="{key}-t">{html.escape(title)}</title><desc id="{key}-d">{html.escape(description)}</desc>'
    body = svg[svg.index(">") + 1 :]
    return re.sub(r"\n\s*", "\n", head + named + body).strip()


_MOST_POINTS = 400
LOGARITHMIC = 20.0
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
Points = tuple[list[float], list[float]]


def loss_plot(run: RunContent, key: str) -> Plot | None:
    """Training and validation loss over the steps; None where nothing was measured."""
    train, validation = series(run.steps, "loss"), series(run.evaluations, "eval_loss")
    if not train[0] and not validation[0]:
        return None
    with _figure(key, "step", "nats a token") as (figure, axes):
        if train[0]:
            axes.plot(*thinned(*train), color=SERIES[0], label="training")
        if validation[0]:
            axes.plot(*validation, color=SERIES[1], linestyle="--", marker="o", markersize=4.5, label="validation")
        _scale(axes, [*train[1], *validation[1]])
        axes.legend()
        parts = [_told(name, points) for name, points in (("Training loss", train), ("validation loss", validation))]
        return drawn(figure, key, "Loss over the steps", "; ".join(part for part in parts if part) + ".")


def schedule_plots(run: RunContent, key: str) -> list[Plot]:
    """The learning rate and the norm of the gradient over the steps."""
    plots = []
    for name, title, colour in (
        ("learning_rate", "Learning rate", 2),
        ("grad_norm", "Norm of the gradient before clipping", 3),
    ):
        points = series(run.metrics, name)
        drawn_points = thinned(*points)
        if not points[0]:
            continue
        inner = f"{key}-{name.replace('_', '-')}"
        with _figure(inner, "step", title.partition(" before")[0].lower()) as (figure, axes):
            axes.plot(*drawn_points, color=SERIES[colour], linewidth=1.4)
            if name == "grad_norm":
                _scale(axes, drawn_points[1])
            else:
                axes.set_ylim(bottom=0)
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            plots.append(drawn(figure, inner, title, f"{_told(title, points)}."))
    return plots


def norms_plot(updates: Sequence[LayerUpdate], key: str) -> Plot | None:
    """How far the adapter moves each weight: bars for one target, a map of layers and targets for more."""
    if not updates:
        return None
    layers = list(dict.fromkeys(update.layer for update in updates))
    targets = sorted({update.target for update in updates})
    norms = {(update.layer, update.target): update.norm for update in updates}
    names = ["" if layer is None else str(layer) for layer in layers]
    highest = max(norms.values())
    with _figure(key, "‖ΔW‖" if len(targets) == 1 else "", "layer", height=1.1 + 0.27 * len(layers)) as (figure, axes):
        axes.set_yticks(range(len(layers)), names)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        if len(targets) == 1:
            values = [norms.get((layer, targets[0]), 0.0) for layer in layers]
            axes.barh(range(len(layers)), values, color=SERIES[0], height=0.66)
            axes.grid(axis="y", visible=False)
        else:
            _draw_map(axes, [[norms.get((layer, target)) for target in targets] for layer in layers], targets)
        largest = max(updates, key=lambda update: update.norm)
        place = f"{largest.target} of layer {largest.layer}" if largest.layer is not None else largest.target
        told = f"{len(updates)} weights; the largest update is of {place}, {small(highest)}."
        title = "Size of the update of each weight" + (f", {targets[0]}" if len(targets) == 1 else "")
        return drawn(figure, key, title, told)


def comparison_plot(content: ComparisonContent, key: str) -> Plot | None:
    """The metric of each entry with its error, and each seed's own value."""
    by, entries = content.comparison.by, content.comparison.entries
    trained = [entry for entry in entries if entry.method]  # the untouched base is far away, and in the table
    measured = [(entry.name, entry.metrics[by]) for entry in trained or entries if by in entry.metrics]
    if not measured:
        return None
    values = [value for _, statistic in measured for value in (statistic.mean, *statistic.values)]
    with _figure(key, METRICS[by].label, "", height=1.1 + 0.42 * len(measured)) as (figure, axes):
        for line, (_, statistic) in enumerate(measured):
            axes.plot(statistic.values, [line] * len(statistic.values), "|", color=SERIES[0], markersize=9, alpha=0.6)
            error = statistic.standard_error
            axes.errorbar(statistic.mean, line, xerr=error, fmt="o", color=SERIES[0], capsize=4, markersize=6)
        axes.set_yticks(range(len(measured)), [name for name, _ in measured])
        axes.set_ylim(len(measured) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        _scale(axes, values, of="x")
        told = "; ".join(f"{name} {small(statistic.mean)}" for name, statistic in measured)
        name = METRICS[by].label
        title = f"{name[0].upper()}{name[1:]} of each entry, with the standard error and each seed"
        return drawn(figure, key, title, f"{told}.")


def overlay_plot(content: ComparisonContent, key: str) -> Plot | None:
    """The validation loss of every run over the steps: a colour, a line and a marker for each entry."""
    entries = [entry for entry in content.comparison.entries if content.runs_of(entry)]
    curves = [
        (entry.name, [series(run.evaluations, "eval_loss") for run in content.runs_of(entry)]) for entry in entries
    ]
    values = [value for _, seeds in curves for points in seeds for value in points[1]]
    if not values:
        return None
    with _figure(key, "step", "nats a token") as (figure, axes):
        for number, (name, seeds) in enumerate(curves):
            looks = (each[number % len(each)] for each in (SERIES, _DASHES, _MARKERS))
            look = dict(zip(("color", "linestyle", "marker"), looks, strict=True))
            for seed, points in enumerate(seeds):
                axes.plot(*points, **look, markersize=4.5, linewidth=1.3, label=None if seed else name)
        _scale(axes, values)
        axes.legend()
        ends = "; ".join(f"{name} ends at {small(seeds[0][1][-1])}" for name, seeds in curves if seeds[0][1])
        return drawn(figure, key, "Validation loss of every run over the steps", f"{ends}.")


def thinned(steps: list[float], values: list[float]) -> Points:
    """At most some hundred points: of a longer curve, the means of neighbours."""
    width = -(-len(steps) // _MOST_POINTS)
    if width <= 1:
        return steps, values
    starts = range(0, len(steps), width)
    means = [sum(values[start : start + width]) / len(values[start : start + width]) for start in starts]
    return [steps[min(start + width, len(steps)) - 1] for start in starts], means


def series(lines: Sequence[dict[str, Any]], name: str) -> Points:
    """Steps and values of the lines in which a number is known."""
    known = [line for line in lines if line.get(name) is not None]
    return [line["step"] for line in known], [line[name] for line in known]


@contextmanager
def _figure(key: str, across: str, up: str, height: float = 3.2) -> Iterator[tuple[Any, Any]]:
    """A figure in the page's style; `key` tells its inner names from those of the other figures of the page."""
    import matplotlib as mpl  # takes a third of a second
    from matplotlib.figure import Figure  # without pyplot no window system is asked

    settings: Any = {**_SETTINGS, "svg.hashsalt": key}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(5.4, height), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        yield figure, axes


def _scale(axes: Any, values: Sequence[float], of: str = "y") -> None:
    """A logarithmic axis for values of different sizes, with its numbers written out."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis = axes.yaxis if of == "y" else axes.xaxis
    if min(values) > 0 and max(values) / min(values) >= LOGARITHMIC:
        (axes.set_yscale if of == "y" else axes.set_xscale)("log")
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if max(values) / min(values) < 500 else (1,)))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(lambda value, _: f"{value:g}")


def _draw_map(axes: Any, table: list[list[float | None]], targets: list[str]) -> None:
    """A field for each weight, the fuller the further it is moved, with its number."""
    from matplotlib.patches import Rectangle

    highest = max(value for row in table for value in row if value is not None) or 1.0
    axes.grid(visible=False)
    axes.set_xlim(-0.5, len(targets) - 0.5)
    axes.set_ylim(len(table) - 0.5, -0.5)
    slanted = {"rotation": 35, "ha": "right"} if len(targets) > 3 else {}
    axes.set_xticks(range(len(targets)), targets, **slanted)
    for line, row in enumerate(table):
        for column, value in enumerate(row):
            if value is None:
                continue
            field = Rectangle((column - 0.48, line - 0.46), 0.96, 0.92, facecolor=SERIES[0], edgecolor=GRID)
            field.set_alpha(0.06 + 0.49 * value / highest)
            axes.add_patch(field)
            axes.text(column, line, f"{value:.2g}", ha="center", va="center", fontsize=8)


def _told(name: str, points: Points) -> str:
    steps, values = points
    if not steps:
        return ""
    begin, end = f"{small(values[0])} at step {count(steps[0])}", f"{small(values[-1])} at step {count(steps[-1])}"
    return f"{name} goes from {begin} to {end}"


_WIDEST, _NARROWEST, _HEIGHT, _LOW_HEIGHT = 110, 40, 16, 10
_BOXES = str.maketrans("┌┐└┘─│┬┴├┤┼\N{MINUS SIGN}", "++++-|+++++-")


def draw_curves(run: RunContent, width: int, *, ascii_only: bool) -> str:
    """Training and validation loss, and the learning rate, over the steps, to fit a terminal."""
    line, sign = ("*", "*") if ascii_only else ("braille", "\N{BRAILLE PATTERN DOTS-1256}")
    train, validation = (line, series(run.steps, "loss")), ("o", series(run.evaluations, "eval_loss"))
    rate = (line, series(run.metrics, "learning_rate"))
    width = max(_NARROWEST, min(width, _WIDEST))
    names = [f"{sign} training"] * bool(train[1][0]) + ["o validation"] * bool(validation[1][0])
    loss = _draw(f"loss, nats a token: {', '.join(names)}", [train, validation], width, _HEIGHT, wide=True)
    text = "\n".join(part for part in (loss, _draw("learning rate", [rate], width, _LOW_HEIGHT)) if part)
    return text.translate(_BOXES) if ascii_only else text


def _draw(title: str, curves: Sequence[tuple[str, Points]], width: int, height: int, *, wide: bool = False) -> str:
    """One picture, without colours, of curves with their markers; those of `o` are not joined to lines.

    Nothing where there is nothing to draw. What is `wide` may be logarithmic.
    """
    curves = [(marker, points) for marker, points in curves if points[0]]
    if not curves:
        return ""
    import plotext  # type: ignore[import-untyped]

    plotext.terminal.limit(False, False)  # the size is given, whatever terminal it finds
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, height)
    figure.theme("colorless")
    figure.title(title)
    figure.label("step", "x")
    values = [value for _, points in curves for value in points[1]]
    if wide and min(values) > 0 and max(values) / min(values) >= LOGARITHMIC:
        figure.ruler("y").scale("log")
    for marker, points in curves:
        signal = figure.signal(*thinned(*points), marker=marker)
        figure.draw(signal if marker == "o" else signal.lines())
    return "\n".join(line.rstrip() for line in str(figure.build().string(colorless=True)).rstrip().splitlines())
