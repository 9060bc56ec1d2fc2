"""Figures of a sweep: accuracy against realised cost along each axis, and what compound gains over single dimensions.

Like those of `figures.py`: plain values in, a Figure that belongs to nobody out, styled by its context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Transform, offset_copy

from scalesearch.figures import BLUE, GREEN, GREY, INK, ORANGE, PAPER, PURPLE, RED, _cost_axis, styled

# The same axis looks the same in every picture; others take what is left, in order.
LOOKS = {"depth": ("^", PURPLE), "width": ("s", ORANGE), "resolution": ("P", GREEN), "compound": ("o", BLUE)}
# Points between the marks of neighbouring axes.
ASIDE = 6.0
OTHERS = (("v", RED), ("X", GREY), ("D", INK), ("*", BLUE))


@dataclass(frozen=True, slots=True)
class Point:
    """A network: multiply-adds, mean accuracy and its interval as fractions."""

    macs: float
    accuracy: float | None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """The networks along one axis, the base among them or not."""

    label: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class GainRow:
    """A difference in points of a fraction; `main` is the one to the best single dimension."""

    label: str
    gain: float
    bounds: tuple[float, float] | None
    main: bool = True


@styled
def accuracy_by_axis(ways: Sequence[Way], base: Point | None = None, *, published: Sequence[Way] = (), published_base: Point | None = None,
                     accuracy_label: str = "mean validation accuracy (%)", confidence: float = 0.95) -> Figure:
    """Accuracy against realised multiply-adds, a line an axis from the base on, with intervals.

    `published` networks were trained in full on ImageNet: they have a panel and a scale of their own.
    """
    figure = Figure(figsize=(10.4 if published else 7.6, 5.0))
    axes, *others = figure.subplots(1, 2, width_ratios=(3, 2)) if published else (figure.subplots(),)
    names = list(dict.fromkeys(way.label for way in (*ways, *published)))
    _ways(figure, axes, ways, base, names)
    axes.set_ylabel(f"{accuracy_label}, {confidence:.0%} interval")
    axes.set_title("This run" if published else "")
    for other in others:
        _ways(figure, other, published, published_base, names)
        other.set_ylabel("published ImageNet top-1 (%)")
        other.set_title("For scale only: other images")
    handles = {label: handle for panel in figure.axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 5))
    return figure


def look(label: str, names: Sequence[str]) -> tuple[str, str]:
    """Mark and colour of an axis."""
    if label in LOOKS:
        return LOOKS[label]
    return OTHERS[[name for name in names if name not in LOOKS].index(label) % len(OTHERS)]


def _ways(figure: Figure, axes: Axes, ways: Sequence[Way], base: Point | None, names: Sequence[str]) -> None:
    """Lines of one panel. Marks of equal cost would hide each other, so those of each axis stand some points aside."""
    costs = [p.macs for way in ways for p in way.points if p.accuracy is not None]
    for number, way in enumerate(ways):
        mark, colour = look(way.label, names)
        points = sorted((p for p in way.points if p.accuracy is not None), key=lambda p: p.macs)
        start = [(base.macs, 100 * base.accuracy)] if base is not None and base.accuracy is not None else []
        line = [*start, *((p.macs, 100 * (p.accuracy or 0.0)) for p in points)]
        aside = offset_copy(axes.transData, figure, ASIDE * (number - (len(ways) - 1) / 2), 0.0, units="points")
        if points:
            axes.plot(*zip(*line, strict=True), "-", color=colour, linewidth=1.3, alpha=0.6, zorder=2)
            axes.plot(*zip(*line[len(start):], strict=True), mark, color=colour, markersize=7.5, markeredgecolor=PAPER,
                      markeredgewidth=0.7, label=way.label, zorder=4, transform=aside)
        for p in points:
            _bar(axes, p, colour, aside)
    if base is not None and base.accuracy is not None:
        axes.plot([base.macs], [100 * base.accuracy], "D", color=INK, markersize=7, markeredgecolor=PAPER, label="base", zorder=5)
        _bar(axes, base, INK, axes.transData)
        costs.append(base.macs)
    _cost_axis(axes, costs)
    axes.margins(y=0.1)


def _bar(axes: Axes, point: Point, colour: str, transform: Transform) -> None:
    if point.interval is not None:
        axes.plot([point.macs] * 2, [100 * end for end in point.interval], color=colour, linewidth=1.4, alpha=0.8, zorder=3,
                  solid_capstyle="butt", transform=transform)
        axes.update_datalim([(point.macs, 100 * end) for end in point.interval])  # what stands aside is not looked at


@styled
def gain_intervals(rows: Sequence[GainRow], *, confidence: float = 0.95) -> Figure:
    """Differences at equal cost with their intervals; what counts is whether the interval holds 0."""
    figure = Figure(figsize=(8.4, 1.5 + 0.32 * max(len(rows), 3)))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        tied = row.bounds is None or row.bounds[0] <= 0 <= row.bounds[1]
        colour = GREY if not row.main else BLUE if tied else GREEN if row.gain > 0 else RED
        if row.bounds is not None:
            axes.plot([100 * row.bounds[0], 100 * row.bounds[1]], [place, place], color=colour, linewidth=3.0 if row.main else 1.5,
                      solid_capstyle="butt")
        axes.plot([100 * row.gain], [place], "o", color=colour, markersize=8 if row.main else 5, markeredgecolor=PAPER, zorder=3)
    axes.axvline(0, color=INK, linewidth=1.0)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"difference at equal cost (points), {confidence:.0%} interval")
    return figure
