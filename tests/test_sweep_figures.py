"""Figures of sweeps: a line an axis from the base on, intervals where there are some, and nothing is needed to be there."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from scalesearch.figures import BLUE, GREEN, GREY, RED, save
from scalesearch.sweep_figures import LOOKS, GainRow, Point, Way, accuracy_by_axis, gain_intervals, look

BASE = Point(1e6, 0.5, (0.48, 0.52))
WAYS = [Way("width", [Point(4e6, 0.60, (0.58, 0.62)), Point(2e6, 0.55)]), Way("compound", [Point(4e6, 0.63, (0.61, 0.65))]),
        Way("fast", [Point(4e6, None)])]


def test_each_axis_is_a_line_from_the_base_on() -> None:
    figure = accuracy_by_axis(WAYS, BASE)
    axes, = figure.axes
    assert axes.get_xlabel() == "multiply-adds per image (log scale)" and "95% interval" in axes.get_ylabel()
    lines = {line.get_color(): [round(y, 6) for y in line.get_ydata()] for line in axes.lines if line.get_linestyle() == "-"
             and len(line.get_xdata()) > 1 and line.get_xdata()[0] != line.get_xdata()[1]}
    assert lines[LOOKS["width"][1]] == [50, 55, 60] and lines[LOOKS["compound"][1]] == [50, 63]
    upright = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]]
    bars = [tuple(round(float(y), 6) for y in line.get_ydata()) for line in upright]
    assert sorted(bars) == [(48.0, 52.0), (58.0, 62.0), (61.0, 65.0)]
    legend, = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["width", "compound", "base"]


def test_published_networks_have_a_panel_and_a_scale_of_their_own() -> None:
    figure = accuracy_by_axis(WAYS, BASE, published=[Way("compound", [Point(1.8e9, 0.811)])], published_base=Point(4e8, 0.773))
    own, other = figure.axes
    assert other.get_ylabel() == "published ImageNet top-1 (%)" and own.get_ylim()[1] < 80 < other.get_ylim()[1]
    assert own.get_xlim()[1] < other.get_xlim()[0]


def test_an_axis_looks_the_same_everywhere_and_others_differ() -> None:
    names = ["depth", "fast", "my-grid"]
    looks = [look(name, names) for name in names]
    assert looks[0] == LOOKS["depth"] and len(set(looks)) == 3


def test_a_gain_is_coloured_by_what_its_interval_says() -> None:
    rows = [GainRow("a", 0.02, (0.01, 0.03)), GainRow("b", 0.0, (-0.01, 0.01)), GainRow("c", -0.02, (-0.03, -0.01)),
            GainRow("− width", 0.02, (0.01, 0.03), main=False), GainRow("d", 0.02, None)]
    figure = gain_intervals(rows)
    axes, = figure.axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_color() for dot in dots] == [GREEN, BLUE, RED, GREY, BLUE]
    assert [round(float(dot.get_xdata()[0]), 6) for dot in dots] == [2, 0, -2, 2, 2]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b", "c", "− width", "d"]


@pytest.mark.parametrize("figure", [accuracy_by_axis([]), accuracy_by_axis([], BASE), gain_intervals([]),
                                    accuracy_by_axis([Way("depth", [Point(1e6, 0.5)])])])
def test_little_or_nothing_can_be_drawn_and_saved(figure: Figure, tmp_path) -> None:  # type: ignore[no-untyped-def]
    svg, png = save(figure, tmp_path / "figure")
    assert svg.stat().st_size and png.stat().st_size
