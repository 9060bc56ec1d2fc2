"""Figures of a search's verdict and of what it bought; the style, colours and saving are those of `figures`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from scalesearch.analysis import Interval
from scalesearch.figures import BLUE, GREEN, GREY, INK, MOST_VECTORS, ORANGE, PAPER, RED, short_count, styled

# Bars of the importance picture; the table has all.
MOST_DECISIONS = 16
_STANDING = {"ahead": GREEN, "tied": BLUE, "behind": RED, "unknown": GREY}
_SHAPES = {"winner": ("*", 15), "finalist": ("o", 7), "scaled baseline": ("D", 7), "random network": ("s", 7)}


@dataclass(frozen=True, slots=True)
class Judged:
    """A row of the verdict's picture; accuracies and differences are fractions, `standing` is that to the baseline."""

    label: str
    role: str  # winner, finalist, scaled baseline or random network
    mean: float | None
    interval: Interval | None
    test: float | None = None
    test_interval: Interval | None = None
    difference: float | None = None
    bounds: Interval | None = None
    standing: str = "unknown"


@styled
def verdict_intervals(rows: Sequence[Judged], *, images: str = "test", confidence: float = 0.95) -> Figure:
    """Left each network's mean with its interval on both kinds of images, right its difference to the baseline at equal cost."""
    figure = Figure(figsize=(10.0, 2.1 + 0.42 * max(len(rows), 3)))
    left, right = figure.subplots(1, 2, sharey=True)
    tested = any(row.test is not None for row in rows)
    for place, row in enumerate(rows):
        shape, size = _SHAPES[row.role]
        shift = 0.14 if tested else 0.0
        _dot(left, row.mean, row.interval, place - shift, shape, size, GREY if tested else INK)
        _dot(left, row.test, row.test_interval, place + shift, shape, size, INK)
        if row.role != "scaled baseline":
            _dot(right, row.difference, row.bounds, place, shape, size, _STANDING[row.standing])
    right.axvline(0, color=INK, linewidth=1.0)
    left.set_yticks(range(len(rows)), [row.label for row in rows])
    left.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08)
    left.set_xlabel(f"mean accuracy (%), {confidence:.0%} interval")
    right.set_xlabel(f"difference to the scaled baseline (points),\n{images} images, {confidence:.0%} for all together")
    left.set_title("Trained again with fresh seeds")
    right.set_title("Ahead where the interval lies right of 0")
    kinds = [("o", INK, f"{images} images" if tested else "validation images", True), ("o", GREY, "validation images", tested),
             *(("o", colour, name, any(row.standing == name and row.bounds for row in rows))
               for name, colour in _STANDING.items() if name != "unknown"),
             ("*", INK, "winner", any(row.role == "winner" for row in rows))]
    figure.legend(handles=[left.plot([], [], shape, color=colour, markersize=9, linestyle="", label=label)[0]
                           for shape, colour, label, there in kinds if there], loc="outside lower center", ncols=6)
    return figure


def _dot(axes: Axes, centre: float | None, interval: Interval | None, place: float, shape: str, size: float, colour: str) -> None:
    if centre is None:
        return
    if interval is not None:
        axes.plot([100 * interval[0], 100 * interval[1]], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
    axes.plot([100 * centre], [place], shape, color=colour, markersize=size, markeredgecolor=PAPER, markeredgewidth=0.6, zorder=3)


@dataclass(frozen=True, slots=True)
class Best:
    """Best reward so far over whole random trainings: a step curve of the search."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = BLUE
    dashed: bool = False


@styled
def best_so_far(search: Sequence[Best], random: tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]], *,
                reward_label: str, random_label: str = "random search: mean, middle 80 %",
                x_label: str = "networks evaluated (log scale)") -> Figure:
    """The search's best reward so far beside that of a random search: `random` is n, mean, low, high."""
    figure = Figure(figsize=(7.6, 4.6))
    axes = figure.subplots()
    numbers, mean, low, high = random
    axes.fill_between(numbers, low, high, color=GREY, alpha=0.25, linewidth=0)
    axes.plot(numbers, mean, color=GREY, linewidth=2.0, label=random_label)
    ends = [*numbers]
    for curve in search:
        points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if x > 0 and math.isfinite(y)]
        if points:
            ends += [points[0][0], points[-1][0]]
            axes.step(*zip(*points, strict=True), where="post", color=curve.colour, linewidth=2.0, label=curve.label,
                      linestyle=(0, (4, 2)) if curve.dashed else "-")
    axes.set_xscale("log")
    if ends:
        axes.set_xlim((numbers[0] if numbers else min(ends)) / 1.1, max(ends) * 1.15)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x_label)
    axes.set_ylabel(reward_label)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def importance_bars(names: Sequence[str], shares: Mapping[str, Sequence[float | None]]) -> Figure:
    """Horizontal bars, a group a decision, the first on top; `shares` are fractions by the legend's names."""
    names = list(names)[:MOST_DECISIONS]
    figure = Figure(figsize=(7.6, 1.6 + (0.18 + 0.07 * len(shares)) * max(len(names), 3)))
    axes = figure.subplots()
    height = 0.8 / max(len(shares), 1)
    for number, ((label, values), colour) in enumerate(zip(shares.items(), (BLUE, ORANGE, GREEN), strict=False)):
        places = [i + (number - (len(shares) - 1) / 2) * height for i in range(len(names))]
        axes.barh(places, [100 * (value or 0.0) for value in values[: len(names)]], height=0.9 * height, color=colour, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share (%)")
    if names:
        figure.legend(loc="outside lower center", ncols=1)
    return figure


@dataclass(frozen=True, slots=True)
class Climb:
    """A network through the rungs: shares of a whole evaluation and its mean accuracy after each; `role` "", best or baseline."""

    label: str
    shares: tuple[float, ...]
    accuracy: tuple[float, ...]
    role: str = ""


@styled
def promotions(climbs: Sequence[Climb], *, fidelity: str = "training", accuracy_label: str = "validation accuracy (%)") -> Figure:
    """Accuracy of every network at each rung: those that stop there are dots, those that go on are lines."""
    figure = Figure(figsize=(7.6, 4.8))
    axes = figure.subplots()
    shares = sorted({share for climb in climbs for share in climb.shares})
    looks = {"": (BLUE, 1.2, 2.0), "best": (GREEN, 2.4, 4.0), "baseline": (RED, 2.0, 3.0)}
    many = len(climbs) * max(len(shares), 1) > MOST_VECTORS
    seen: set[str] = set()
    for climb in sorted(climbs, key=lambda c: (looks[c.role][2], len(c.shares))):
        colour, width, order = looks[climb.role]
        goes_on = len(climb.shares) > 1
        label = climb.label if climb.role else "promoted" if goes_on else "stopped at the first rung"
        percent = [100 * a for a in climb.accuracy]
        axes.plot(climb.shares, percent, "o-" if goes_on or climb.role else "o", color=colour if goes_on or climb.role else GREY,
                  linewidth=width, markersize=4.0, alpha=1.0 if climb.role else 0.6, zorder=order, label=None if label in seen else label,
                  rasterized=many)
        seen.add(label)
    if shares:
        axes.set_xscale("log")
        axes.set_xticks(shares, [_share(share, len([c for c in climbs if share in c.shares and c.role != "baseline"])) for share in shares])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
        axes.set_xlim(shares[0] / 1.15, shares[-1] * 1.15)
    axes.set_xlabel(f"share of a whole training ({fidelity}) and networks that reached it")
    axes.set_ylabel(accuracy_label)
    if climbs:
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def _share(share: float, count: int) -> str:
    inverse = 1 / share
    name = "whole" if share >= 1 else f"1/{inverse:.0f}" if abs(inverse - round(inverse)) < 0.02 * inverse else f"{share:.2g}"
    return f"{name}\n{count:,} network{'s' * (count != 1)}"


@styled
def accuracy_against(points: Sequence[tuple[float, float]], front: Sequence[tuple[float, float]], *, cost_label: str,
                     winner: tuple[float, float] | None = None, accuracy_label: str = "validation accuracy (%)") -> Figure:
    """Networks and their front by any cost; (cost, accuracy as a fraction)."""
    figure = Figure(figsize=(7.6, 4.6))
    axes = figure.subplots()
    if points:
        axes.plot([p[0] for p in points], [100 * p[1] for p in points], "o", color=GREY, markersize=4.5, alpha=0.7, markeredgewidth=0,
                  label="evaluated networks", rasterized=len(points) > MOST_VECTORS)
    if front:
        costs, accuracies = [p[0] for p in front], [100 * p[1] for p in front]
        axes.step(costs, accuracies, where="post", color=BLUE, linewidth=1.3)
        axes.plot(costs, accuracies, "o", color=BLUE, markersize=5.5, label="Pareto front")
    if winner is not None:
        axes.plot([winner[0]], [100 * winner[1]], "*", color=GREEN, markersize=17, markeredgecolor=PAPER, label="winner", zorder=5)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value) if value >= 1000 else f"{value:g}"))
    axes.set_xlabel(cost_label)
    axes.set_ylabel(accuracy_label)
    if points or front:
        figure.legend(loc="outside lower center", ncols=3)
    return figure


