"""Figures: axes say what and in which unit, nothing is lost or mixed, and the same figure gives the same bytes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from scalesearch import figures
from scalesearch.analysis import compare_with_best
from scalesearch.figures import Curve, Line, Mark, Panel, Scaled


def marks(count=12, seed=0):
    rng = np.random.default_rng(seed)
    return [Mark(f"n{i}", int(rng.uniform(3.6e8, 4e8)), float(rng.uniform(0.62, 0.67)), 0.004) for i in range(count)]


PUBLISHED = [Mark("B0", 385_814_752, 0.771), Mark("B1", 686_802_832, 0.791)]
COMPARISON = compare_with_best({"a": [0.90, 0.91, 0.92], "b": [0.89, 0.91, 0.92], "c": [0.70, 0.72, 0.71]})
MEMBERS = [{"phi": 0.0, "cost_ratio": 1.0, "macs": 400, "nominal": {"cost": 1.0}, "accuracy": 0.7},
           {"phi": 1.0, "cost_ratio": 2.5, "macs": 1000, "nominal": {"cost": 1.9}, "accuracy": None},
           {"phi": 2.0, "cost_ratio": 4.7, "macs": 1900, "nominal": {"cost": 3.7}, "accuracy": 0.75}]
SCALED = [Scaled("n0", ((1.2, 1.1, 1.15), (1.25, 1.1, 1.15)), 0.96, tied=True, best=True),
          Scaled("n1", ((1.0, 1.2, 1.2),), 0.95, nominal_choice=True), Scaled("n2", ((1.4, 1.0, 1.2),), 0.94, compared=False)]

PANELS = [Panel("epoch", "loss (nats)", [Line("seed 0", (1, 2, 3), (2.0, float("nan"), 1.0)), Line("training", (1, 2), (3, 2), 1, True)]),
          Panel("epoch", "training resolution (px)", [Line("", (0, 2, 4), (16, 32, 32))], steps=True, from_zero=True),
          Panel("epoch", "steps (log scale)", [Line("", (0, 1), (1, 1000))], log=True)]

DRAWN = {
    "cost": lambda: figures.accuracy_against_cost(marks(), baseline=Mark("b0", 385_814_752, 0.657, 0.004), winner=marks()[0],
                                                  window=(3.6e8, 4e8), published=PUBLISHED),
    "training": lambda: figures.accuracy_against_training([Curve("", (1e9, 2e9), (0.3, 0.5)), Curve("best", (1e9,), (0.4,), "best")]),
    "reward": lambda: figures.reward_over_evaluations([0.5, None, 0.6, float("nan")], baseline=0.55),
    "coefficients": lambda: figures.coefficient_panels(SCALED),
    "intervals": lambda: figures.comparison_intervals(COMPARISON),
    "family": lambda: figures.family_costs(MEMBERS),
    "panels": lambda: figures.line_panels(PANELS),
}
EMPTY = {
    "cost": lambda: figures.accuracy_against_cost([]),
    "one network": lambda: figures.accuracy_against_cost([Mark("n", 400, 0.5)]),
    "training": lambda: figures.accuracy_against_training([]),
    "reward": lambda: figures.reward_over_evaluations([None, None]),
    "coefficients": lambda: figures.coefficient_panels([]),
    "intervals": lambda: figures.comparison_intervals(compare_with_best({"a": [0.9], "b": [0.8]})),
    "family": lambda: figures.family_costs([{"phi": 0.0, "cost_ratio": 1.0, "macs": 400}]),
    "panels": lambda: figures.line_panels([Panel("epoch", "loss (nats)", [Line("seed 0", (), ())])]),
}


def labels(figure: Figure) -> list[str]:
    return [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel()) if text]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("name", DRAWN)
def test_same_figure_same_bytes(name, tmp_path):
    first, second = (figures.save(DRAWN[name](), tmp_path / which / name) for which in ("one", "two"))
    assert [p.suffix for p in first] == [".svg", ".png"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert "<dc:date>" not in first[0].read_text()


@pytest.mark.parametrize(("name", "wanted"), [
    ("cost", ["multiply-adds per image (log scale)", "validation accuracy (%)", "published ImageNet top-1, full training (%)"]),
    ("training", ["cumulative training multiply-adds of the candidate (3 × forward, log scale)", "validation accuracy (%)"]),
    ("reward", ["evaluation (number, in the order of finishing)", "reward"]),
    ("coefficients", ["α, depth (layers ×)", "β, width (channels ×)", "γ, resolution (pixels ×)", "mean accuracy (%)"]),
    ("intervals", ["mean accuracy (%), 95% interval", "difference to the best (points),\nsimultaneous 95% interval"]),
    ("panels", ["epoch", "loss (nats)", "training resolution (px)", "steps (log scale)"]),
    ("family", ["φ (compound coefficient)", "multiply-adds, relative to the base (log scale)", "validation accuracy (%)"]),
])
def test_axes_say_what_and_in_which_unit(name, wanted):
    assert set(wanted) <= set(labels(DRAWN[name]()))


@pytest.mark.parametrize("name", EMPTY)
def test_little_or_nothing_still_draws(name, tmp_path):
    svg, _ = figures.save(EMPTY[name](), tmp_path / name)
    assert svg.stat().st_size > 1000


def test_published_networks_have_a_scale_of_their_own():
    figure = DRAWN["cost"]()
    run, published = figure.axes
    assert max(y for line in run.lines for y in np.atleast_1d(line.get_ydata())) < 70
    assert list(published.lines[0].get_ydata()) == pytest.approx([77.1, 79.1])
    assert len(figures.accuracy_against_cost(marks()).axes) == 1


def test_pareto_front_winner_and_baseline_are_in_the_legend():
    assert {"Pareto front", "stock baseline: b0", "winner: n0", "± 1 standard deviation"} <= set(legend(DRAWN["cost"]()))


def test_legends_stand_outside_the_axes():
    for draw in DRAWN.values():
        figure = draw()
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert not any(axes.get_window_extent().overlaps(box) for axes in figure.axes)
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_panels_hold_their_lines_and_share_a_legend():
    figure = DRAWN["panels"]()
    loss, size, steps, empty = figure.axes
    assert [list(line.get_xdata()) for line in loss.lines] == [[1, 3], [1, 2]], "what is not a number is left out"
    assert [line.get_linestyle() for line in loss.lines] == ["-", "--"] and loss.lines[1].get_color() == figures.ORANGE
    assert size.lines[0].get_drawstyle() == "steps-post" and size.get_ylim()[0] == 0
    assert steps.get_yscale() == "log" and not empty.axison
    assert legend(figure) == ["seed 0", "training"]


def test_failures_are_drawn_on_the_edge():
    line = next(line for line in DRAWN["reward"]().axes[0].lines if line.get_label() == "failed")
    assert list(line.get_xdata()) == [2, 4]


def test_intervals_are_those_of_the_comparison():
    right = DRAWN["intervals"]().axes[1]
    drawn = [tuple(line.get_xdata()) for line in right.lines if len(line.get_xdata()) == 2 and line.get_color() == figures.GREY]
    assert drawn == [pytest.approx([100 * v for v in COMPARISON["c"].bounds])]


def test_a_crowd_becomes_pixels_inside_the_svg(tmp_path):
    svg, _ = figures.save(figures.accuracy_against_cost(marks(figures.MOST_VECTORS + 1)), tmp_path / "crowd")
    assert svg.stat().st_size < 300_000


def test_drawing_leaves_the_style_of_others_alone():
    code = ("import matplotlib as mpl; before = dict(mpl.rcParams); from scalesearch import figures; "
            "figures.reward_over_evaluations([0.5]); assert dict(mpl.rcParams) == before")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ticks_are_few_and_round():
    for low, high in ((3.5e8, 4.1e8), (1, 1.02), (1e3, 1e19), (7.9e5, 1.6e6)):
        ticks = figures.round_ticks(low, high)
        assert 2 <= len(ticks) <= 7 and all(low <= tick <= high for tick in ticks)
