"""A run's curves as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftkit.report.content import RunContent
from peftkit.report.plots import LOGARITHMIC, series, thinned

__all__ = ["draw_curves"]

_WIDEST, _NARROWEST = 110, 40
_HEIGHT = 16
_LOW_HEIGHT = 10
_BOXES = str.maketrans("┌┐└┘─│┬┴├┤┼\N{MINUS SIGN}", "++++-|+++++-")


@dataclass(frozen=True)
class _Curve:
    """One curve of a picture."""

    marker: str
    points: tuple[list[float], list[float]]
    joined: bool = True


def draw_curves(run: RunContent, width: int, *, ascii_only: bool) -> str:
    """Training and validation loss, and the learning rate, over the steps, to fit a terminal."""
    line, sign = ("*", "*") if ascii_only else ("braille", "\N{BRAILLE PATTERN DOTS-1256}")
    train, validation = (
        _Curve(line, series(run.steps, "loss")),
        _Curve("o", series(run.evaluations, "eval_loss"), False),
    )
    rate = _Curve(line, series(run.metrics, "learning_rate"))
    width = max(_NARROWEST, min(width, _WIDEST))
    names = [f"{sign} training"] * bool(train.points[0]) + ["o validation"] * bool(validation.points[0])
    loss = _draw(f"loss, nats a token: {', '.join(names)}", [train, validation], width, _HEIGHT, wide=True)
    text = "\n".join(part for part in (loss, _draw("learning rate", [rate], width, _LOW_HEIGHT)) if part)
    return text.translate(_BOXES) if ascii_only else text


def _draw(title: str, curves: Sequence[_Curve], width: int, height: int, *, wide: bool = False) -> str:
    """One picture without colours; nothing where there is nothing to draw. What is `wide` may be logarithmic."""
    curves = [curve for curve in curves if curve.points[0]]
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
    values = [value for curve in curves for value in curve.points[1]]
    if wide and min(values) > 0 and max(values) / min(values) >= LOGARITHMIC:
        figure.ruler("y").scale("log")
    for curve in curves:
        signal = figure.signal(*thinned(*curve.points), marker=curve.marker)
        figure.draw(signal.lines() if curve.joined else signal)
    return "\n".join(line.rstrip() for line in str(figure.build().string(colorless=True)).rstrip().splitlines())
