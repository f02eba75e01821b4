"""Pictures that stand in a page: its colours, names of their own, and the same bytes each time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from peftkit.report.content import LayerUpdate, RunContent, read_comparison
from peftkit.report.plots import (
    SERIES,
    Plot,
    comparison_plot,
    draw_curves,
    loss_plot,
    norms_plot,
    overlay_plot,
    schedule_plots,
    thinned,
)

UPDATES = [LayerUpdate(layer, target, 0.5 + layer) for layer in range(3) for target in ("attn.c_attn", "mlp.c_fc")]


def needed(plot: Plot | None) -> Plot:
    assert plot is not None
    return plot


def test_a_picture_is_sound_xml_in_the_pages_own_colours(content: RunContent) -> None:
    plot = needed(loss_plot(content, "one"))

    root = ET.fromstring(plot.svg)
    assert root.attrib["role"] == "img"
    assert [child.tag for child in root][:2] == ["title", "desc"]
    assert "var(--series-1)" in plot.svg
    assert "currentColor" in plot.svg
    assert not set(re.findall(r"#[0-9a-f]{6}", plot.svg)) & {*SERIES, "#000000"}
    assert "<style" not in plot.svg
    assert "metadata" not in plot.svg
    assert "http" not in plot.svg


def test_series_differ_without_colour(content: RunContent) -> None:
    svg = needed(loss_plot(content, "one")).svg

    (dashes,) = set(re.findall(r"stroke-dasharray: [\d., ]+; stroke-dashoffset: 0; stroke: var\(--series-2\)", svg))
    assert dashes
    assert "stroke-dasharray" not in "".join(re.findall(r'style="[^"]*--series-1\)[^"]*"', svg))


def test_names_inside_a_picture_are_its_own(content: RunContent) -> None:
    names = [re.findall(r' id="([^"]+)"', needed(loss_plot(content, key)).svg) for key in ("one", "two")]

    assert names[0]
    assert not set(names[0]) & set(names[1])
    assert len(names[0]) == len(set(names[0]))


def test_what_a_picture_refers_to_is_in_it(content: RunContent) -> None:
    svg = needed(loss_plot(content, "one")).svg

    assert set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg)) <= set(re.findall(r' id="([^"]+)"', svg))


def test_the_same_numbers_give_the_same_bytes(content: RunContent) -> None:
    assert loss_plot(content, "one") == loss_plot(content, "one")


def test_a_picture_says_its_numbers_to_who_does_not_see_it(content: RunContent) -> None:
    first, last = content.steps[0]["loss"], content.steps[-1]["loss"]

    plot = needed(loss_plot(content, "one"))

    assert f"Training loss goes from {first:.4g} at step 1 to {last:.4g} at step 6" in plot.description
    assert [plot.title for plot in schedule_plots(content, "one")] == [
        "Learning rate",
        "Norm of the gradient before clipping",
    ]


def test_nothing_measured_is_no_picture(content: RunContent) -> None:
    empty = replace(content, metrics=[])

    assert loss_plot(empty, "one") is None
    assert schedule_plots(empty, "one") == []
    assert norms_plot([], "one") is None


def test_a_step_without_a_finite_norm_is_left_out(content: RunContent) -> None:
    first = {**content.steps[0], "grad_norm": None, "learning_rate": None}

    plots = schedule_plots(replace(content, metrics=[first]), "one")

    assert plots == []


@pytest.mark.parametrize("updates", [UPDATES, UPDATES[::2], [replace(UPDATES[0], norm=0.0)]])
def test_norms_have_a_mark_for_each_weight(updates: list[LayerUpdate]) -> None:
    plot = needed(norms_plot(updates, "norms"))

    assert plot.description.startswith(f"{len(updates)} weights; the largest update is of ")
    assert plot.svg.count("fill: var(--series-1)") == len(updates)


def test_a_comparison_has_its_metric_and_the_curves_of_all_runs(compared: Path) -> None:
    content = read_comparison(compared)

    entries, curves = needed(comparison_plot(content, "a")), needed(overlay_plot(content, "b"))

    assert entries.description == "full 1.5; lora 1.51; qlora 2.5."
    assert all(name in curves.svg for name in ("full", "lora", "qlora", "var(--series-3)"))


def test_a_name_with_signs_of_formulas_is_drawn_as_it_is(compared: Path) -> None:
    content = read_comparison(compared)
    entries = [replace(entry, name=f"{entry.name} $x_1$ <b>") for entry in content.comparison.entries]

    plot = needed(comparison_plot(replace(content, comparison=replace(content.comparison, entries=entries)), "a"))

    assert "lora $x_1$ &lt;b&gt;" in plot.svg


def test_a_long_curve_is_drawn_by_the_means_of_neighbours() -> None:
    steps, values = thinned([float(step) for step in range(1, 1001)], [float(step % 2) for step in range(1, 1001)])

    assert len(steps) == 334
    assert steps[-1] == 1000
    assert values[0] == pytest.approx(2 / 3)


def test_curves_in_a_terminal_fit_its_width_and_a_pipe_gets_ascii(content: RunContent) -> None:
    for_pipe = draw_curves(content, 60, ascii_only=True)
    for_terminal = draw_curves(content, 60, ascii_only=False)

    assert for_pipe.isascii()
    assert "loss, nats a token: * training, o validation" in for_pipe
    assert "learning rate" in for_pipe
    assert max(map(len, for_pipe.splitlines())) <= 60
    assert "┌" in for_terminal
    assert max(map(len, for_terminal.splitlines())) <= 60
