"""Figures of a search: axes with units, what is not there is not drawn, legends outside, same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from scalesearch import search_figures as sf
from scalesearch.analysis import Interval
from scalesearch.figures import save


def judged(count=4, test=True):
    rows = [sf.Judged(f"n{i}", "winner" if i == 1 else "finalist", 0.9 + 0.01 * i, Interval(0.88, 0.95), 0.89 if test else None,
                      Interval(0.88, 0.9) if test else None, 0.01 * (i - 1), Interval(0.01 * i - 0.02, 0.01 * i),
                      "ahead" if i > 2 else "tied")
            for i in range(count)]
    return [*rows, sf.Judged("base", "scaled baseline", 0.9, None), sf.Judged("drawn", "random network", 0.88, None, difference=-0.02)]


RANDOM = ([1, 2, 4, 8], [0.5, 0.55, 0.6, 0.62], [0.4, 0.45, 0.5, 0.55], [0.6, 0.65, 0.68, 0.7])
CLIMBS = [sf.Climb("a", (1 / 9, 1 / 3, 1.0), (0.5, 0.6, 0.7), "best"), sf.Climb("b", (1 / 9, 1 / 3), (0.5, 0.55)),
          sf.Climb("c", (1 / 9,), (0.4,)), sf.Climb("stock baseline", (1 / 9, 1 / 3, 1.0), (0.45, 0.5, 0.6), "baseline")]

MADE = {
    "verdict": lambda: sf.verdict_intervals(judged()),
    "best": lambda: sf.best_so_far([sf.Best("search", [1, 2, 8], [0.5, 0.6, 0.7])], RANDOM, reward_label="reward"),
    "importance": lambda: sf.importance_bars(["a", "b"], {"predictor": [0.6, 0.1], "ped": [None, 0.4]}),
    "promotions": lambda: sf.promotions(CLIMBS, fidelity="epochs"),
    "front": lambda: sf.accuracy_against([(1.0, 0.5), (2.0, 0.6)], [(2.0, 0.6)], cost_label="latency (ms)", winner=(2.0, 0.6)),
}


def words(figure: Figure) -> str:
    entries = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return " | ".join([*entries, *(t for axes in figure.axes for t in (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()))])


@pytest.mark.parametrize("name", MADE)
def test_same_figure_same_bytes_and_legends_outside(name, tmp_path):
    paths = [save(MADE[name](), tmp_path / str(i) / name) for i in range(2)]
    assert paths[0][0].read_bytes() == paths[1][0].read_bytes() and paths[0][1].read_bytes() == paths[1][1].read_bytes()
    assert all(axes.get_legend() is None for axes in MADE[name]().axes)


@pytest.mark.parametrize(("name", "wanted"), [
    ("verdict", ["mean accuracy (%)", "difference to the scaled baseline (points)", "test images", "ahead", "tied", "winner"]),
    ("best", ["reward", "networks evaluated (log scale)", "random search: mean, middle 80 %", "search"]),
    ("importance", ["share (%)", "predictor", "ped"]), ("front", ["latency (ms)", "validation accuracy (%)", "Pareto front"]),
    ("promotions", ["share of a whole training (epochs)", "promoted", "stopped at the first rung", "stock baseline"])])
def test_axes_and_legends_say_what(name, wanted):
    said = words(MADE[name]())
    assert all(word in said for word in wanted), said


def test_promotions_count_networks_at_each_rung():
    axes = sf.promotions(CLIMBS).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1/9\n3 networks", "1/3\n2 networks", "whole\n1 network"]


def test_intervals_are_those_given():
    right = sf.verdict_intervals(judged(1)).axes[1]
    assert any(np.allclose(line.get_xdata(), [-2.0, 0.0]) for line in right.lines)
    assert "validation images" in words(sf.verdict_intervals(judged(test=False), images="validation"))


def test_many_decisions_are_cut_to_the_first():
    axes = sf.importance_bars([f"d{i}" for i in range(50)], {"predictor": [0.02] * 50}).axes[0]
    assert len(axes.get_yticklabels()) == sf.MOST_DECISIONS


@pytest.mark.parametrize("make", [
    lambda: sf.verdict_intervals([]), lambda: sf.best_so_far([], ([], [], [], []), reward_label="reward"),
    lambda: sf.importance_bars([], {}), lambda: sf.promotions([]), lambda: sf.accuracy_against([], [], cost_label="x")])
def test_nothing_still_draws(make, tmp_path):
    save(make(), tmp_path / "empty")
    assert all(path.stat().st_size > 0 for path in tmp_path.iterdir()) and list(tmp_path.iterdir())
