"""Figures of the two studies that come before a search: a proxy against the longer schedule, and a ladder of widths.

Like those of `figures.py`: plain values in, a Figure that belongs to nobody out, styled by its context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray

from scalesearch.figures import BLUE, GREEN, GREY, MACS, ORANGE, PAPER, PURPLE, RED, round_ticks, short_count, styled

# What a network of an audit is there for: its mark, colour and size.
LOOKS = {"baseline": ("D", RED, 8), "deeper": ("^", PURPLE, 9), "wider": ("s", ORANGE, 8), "higher resolution": ("P", GREEN, 9),
         "draw": ("o", GREY, 7)}


@dataclass(frozen=True, slots=True)
class Both:
    """A network at both sides of an audit: accuracies are fractions; `role` picks its mark."""

    label: str
    role: str
    proxy: float
    long: float


@dataclass(frozen=True, slots=True)
class Width:
    """A rung of a ladder: accuracies (fractions) of its seeds."""

    label: str
    macs: int
    accuracies: Sequence[float]


@styled
def proxy_against_long(networks: Sequence[Both], *, proxy_label: str = "proxy", long_label: str = "longer schedule") -> Figure:
    """Accuracy at the proxy against that at the longer schedule, and beside it each network's rank at both."""
    figure = Figure(figsize=(10.0, 4.8))
    axes, ranks = figure.subplots(1, 2, width_ratios=(3, 2))
    for role in dict.fromkeys((*LOOKS, *(n.role for n in networks))):
        rows = [n for n in networks if n.role == role]
        shape, colour, size = LOOKS.get(role, ("o", BLUE, 7))
        if rows:
            axes.plot([100 * n.proxy for n in rows], [100 * n.long for n in rows], shape, color=colour, markersize=size,
                      markeredgecolor=PAPER, markeredgewidth=0.8, label=role, zorder=3)
    for n in networks:
        axes.annotate(n.label, (100 * n.proxy, 100 * n.long), xytext=(6, 5), textcoords="offset points", fontsize=8.5)
    axes.margins(0.14)
    axes.set_xlabel(f"validation accuracy (%), {proxy_label}")
    axes.set_ylabel(f"validation accuracy (%), {long_label}")
    _rank_lines(ranks, networks)
    if networks:
        figure.legend(loc="outside lower center", ncols=5)
    return figure


def _rank_lines(axes: Axes, networks: Sequence[Both]) -> None:
    """A line from each network's place at the proxy to its place at the longer schedule: crossings are pairs in the wrong order."""
    for n in networks:
        _, colour, _ = LOOKS.get(n.role, ("o", BLUE, 7))
        axes.plot((0, 1), (place(n.proxy, [m.proxy for m in networks]), place(n.long, [m.long for m in networks])), "o-", color=colour,
                  linewidth=1.6, markersize=4.5)
    axes.set_xticks((0, 1), ("proxy", "longer"))
    axes.set_xlim(-0.25, 1.25)
    axes.set_ylim(len(networks) + 0.6, 0.4)
    axes.yaxis.set_major_locator(FixedLocator(list(range(1, len(networks) + 1))))
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("place (1: most accurate)")


def place(value: float, among: Sequence[float]) -> float:
    """1 for the highest; equal values share the mean of their places.

    >>> [place(v, (0.3, 0.1, 0.1)) for v in (0.3, 0.1)]
    [1.0, 2.5]
    """
    return 1 + sum(other > value for other in among) + (sum(other == value for other in among) - 1) / 2


@styled
def width_ladder(widths: Sequence[Width], *, slope: float | None = None, interval: tuple[float, float] | None = None,
                 paper: float = -0.07, confidence: float = 0.95) -> Figure:
    """Accuracy over multiply-adds, both on log scales, with the fitted line and the one of the paper's exponent.

    Along the paper's line the soft reward is level at w = `paper`; both lines go through the mean of the points.
    """
    figure = Figure(figsize=(7.6, 4.6))
    axes = figure.subplots()
    points = [(w.macs, a) for w in widths for a in w.accuracies if a > 0]
    if points:
        _trainings(axes, widths, points)
        _slopes(axes, points, slope, interval, paper, confidence)
        _log_log(axes, points)
        figure.legend(loc="outside lower center", ncols=3)
    axes.set_xlabel(f"{MACS} (log scale)")
    axes.set_ylabel("validation accuracy (%, log scale)")
    return figure


Points = Sequence[tuple[float, float]]


def _trainings(axes: Axes, widths: Sequence[Width], points: Points) -> None:
    axes.plot([m for m, _ in points], [100 * a for _, a in points], "o", color=GREY, markersize=5, alpha=0.7, label="training")
    means = [(w.macs, 100 * sum(w.accuracies) / len(w.accuracies), w.label) for w in widths if w.accuracies]
    axes.plot([m for m, _, _ in means], [a for _, a, _ in means], "D", color=BLUE, markersize=6.5, label="mean of a width")
    for macs, accuracy, label in means:
        axes.annotate(label, (macs, accuracy), xytext=(7, -12), textcoords="offset points", fontsize=9.5)


def _slopes(axes: Axes, points: Points, slope: float | None, interval: tuple[float, float] | None, paper: float, confidence: float) -> None:
    """Straight lines through the mean of the points, in logarithms."""
    x, y = np.log([m for m, _ in points]), np.log([a for _, a in points])
    across = np.linspace(x.min(), x.max(), 60)
    costs = np.exp(across)

    def line(s: float) -> NDArray[np.float64]:
        return np.asarray(100 * np.exp(y.mean() + s * (across - x.mean())))

    if slope is not None:
        axes.plot(costs, line(slope), color=BLUE, linewidth=1.8, label=f"slope {slope:.3f}")
    if interval is not None:
        ends = line(interval[0]), line(interval[1])
        axes.fill_between(costs, np.minimum(*ends), np.maximum(*ends), color=BLUE, alpha=0.13, linewidth=0,
                          label=f"{confidence:.0%} interval of the slope")
    axes.plot(costs, line(-paper), color=RED, linewidth=1.5, linestyle=(0, (5, 3)), label=f"slope at which w = {paper:g} is level")


def _log_log(axes: Axes, points: Points) -> None:
    """Both scales logarithmic, with a handful of round ticks each."""
    costs, accuracies = zip(*points, strict=True)
    across, up = (min(costs) / 1.15, max(costs) * 1.3), (100 * min(accuracies) / 1.05, 100 * max(accuracies) * 1.05)
    axes.set_xlim(*across)
    axes.set_ylim(*up)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(round_ticks(*across)))
    axes.yaxis.set_major_locator(FixedLocator(round_ticks(*up)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
