"""Figures of audits and ladders: axes say what and in which unit, every network is there, and nothing is needed to be there."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from scalesearch.audit_figures import Both, Width, place, proxy_against_long, width_ladder
from scalesearch.figures import save

NETWORKS = [Both("baseline", "baseline", 0.5, 0.7), Both("wider", "wider", 0.6, 0.65), Both("a1b2c3", "draw", 0.5, 0.8)]
WIDTHS = [Width("x0.5", 1_000_000, (0.50, 0.52)), Width("x1", 4_000_000, (0.55, 0.57)), Width("x1.4", 8_000_000, ())]


def labels(figure: Figure) -> list[str]:
    return [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel()) if text]


def test_the_proxy_stands_against_the_longer_schedule() -> None:
    figure = proxy_against_long(NETWORKS, proxy_label="4 epochs", long_label="16 epochs")
    assert labels(figure) == ["validation accuracy (%), 4 epochs", "validation accuracy (%), 16 epochs", "place (1: most accurate)"]
    scatter, ranks = figure.axes
    drawn = sorted((round(float(x), 6), round(float(y), 6)) for line in scatter.lines for x, y in line.get_xydata())
    assert drawn == sorted((100 * n.proxy, 100 * n.long) for n in NETWORKS)
    assert [list(line.get_ydata()) for line in ranks.lines] == [[2.5, 2.0], [1.0, 3.0], [2.5, 1.0]]
    assert {text.get_text() for text in scatter.texts} == {"baseline", "wider", "a1b2c3"}


def test_equal_values_share_their_places() -> None:
    assert [place(v, (3, 1, 1, 0)) for v in (3, 1, 0)] == [1.0, 2.5, 4.0]


def test_the_ladder_has_its_line_its_interval_and_the_papers() -> None:
    figure = width_ladder(WIDTHS, slope=0.05, interval=(0.02, 0.08), paper=-0.07)
    assert labels(figure) == ["multiply-adds per image (log scale)", "validation accuracy (%, log scale)"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "training", "mean of a width", "slope 0.050", "95% interval of the slope", "slope at which w = -0.07 is level"]


@pytest.mark.parametrize("figure", [proxy_against_long([]), width_ladder([]), width_ladder([Width("x1", 10, ())]),
                                    width_ladder(WIDTHS[:1], slope=None)])
def test_little_or_nothing_can_be_drawn_and_saved(figure: Figure, tmp_path) -> None:  # type: ignore[no-untyped-def]
    svg, png = save(figure, tmp_path / "figure")
    assert svg.stat().st_size and png.stat().st_size
