"""A figure as SVG that stands inside a page and takes the page's colours, light or dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["GRID", "SERIES", "TEXT", "Plot", "bare", "drawn", "styled"]

TEXT, GRID = "#010203", "#020304"
SERIES = tuple(f"#0304{number:02x}" for number in range(1, 7))
"""Stand for the page's colours while a figure is drawn: no other number of the drawing looks like them."""

_VARIABLES = {TEXT: "currentColor", GRID: "var(--rule)"} | {
    mark: f"var(--series-{number})" for number, mark in enumerate(SERIES, start=1)
}
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine lays out the same
    "font.size": 9.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
}


@dataclass(frozen=True)
class Plot:
    """A picture and what it says to who does not see it."""

    title: str
    description: str
    svg: str


@contextmanager
def styled(key: str) -> Iterator[None]:
    """Draw in the page's style; `key` tells the figure's inner names from those of the other figures of the page."""
    import matplotlib as mpl  # takes a third of a second

    settings: Any = {**_SETTINGS, "svg.hashsalt": key}
    with mpl.rc_context(settings):
        yield


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
