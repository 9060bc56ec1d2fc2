"""Pictures of a scaling study: the triangle of shares with the fitted surface, and a race.

Like those of `figures.py`: plain values in, a Figure that belongs to nobody out, styled by its context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation

from scalesearch.analysis import Floats
from scalesearch.figures import BLUE, GREEN, GREY, GRID, INK, ORANGE, PAPER, styled
from scalesearch.response_surface import NEAR, Cell, Optimum
from scalesearch.triangle import distance, lattice, scheffe

# Corners: depth above, width left, resolution right.
CORNERS = np.array([[0.5, math.sqrt(3) / 2], [0.0, 0.0], [1.0, 0.0]])
COLOURS = "viridis"


@dataclass(frozen=True, slots=True)
class Place:
    """A network in the triangle: shares of depth, width and resolution, accuracy (a fraction) at exactly the target cost.

    compared   False: it costs something else and has no standing; the surface took it at its corrected accuracy
    """

    label: str
    shares: tuple[float, float, float]
    accuracy: float | None
    tied: bool = False
    best: bool = False
    compared: bool = True


@dataclass(frozen=True, slots=True)
class Triangle:
    """One surface with the networks that it was fitted to; `flat` where nothing tells it from a constant."""

    optimum: Optimum
    networks: Sequence[Place]
    flat: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Racer:
    """A network of a race: its mean accuracy (fraction) after each round that it ran; `fate` is how it ended."""

    label: str
    means: Sequence[float | None]
    fate: str = "finished"  # best, finished, not pursued or behind


def to_plane(shares: Floats) -> Floats:
    """Shares (n, 3) as places (n, 2) in a triangle of side 1.

    >>> to_plane(np.array([[0.0, 0.0, 1.0], [0.0, 0.5, 0.5]])).tolist()
    [[1.0, 0.0], [0.5, 0.0]]
    """
    return np.asarray(shares @ CORNERS)


# ------------------------------------------------------------------ the triangle


@styled
def surface_triangles(triangles: Sequence[Triangle], *, confidence: float = 0.95) -> Figure:
    """Shares of the cost growth: colour is the accuracy below the surface's best, in points, of surface and networks alike.

    The line bounds the region that holds the optimum; paler is where no network was trained near.
    """
    figure = Figure(figsize=(7.0 if len(triangles) < 2 else 5.2 * len(triangles), 5.8 if len(triangles) < 2 else 5.2))
    panels = figure.subplots(1, max(len(triangles), 1), squeeze=False)[0]
    scale = Normalize(min(map(lowest, triangles), default=-1.0), 0.0)
    for axes, triangle in zip(panels, triangles, strict=False):
        _frame(axes, ", ".join(filter(None, (triangle.title, "flat: no share is excluded" if triangle.flat else ""))))
        _surface(axes, triangle, scale)
        _region(axes, triangle)
        _networks(axes, triangle, scale)
    bar = figure.colorbar(mpl.cm.ScalarMappable(scale, COLOURS), ax=list(panels), pad=0.02, aspect=30, shrink=0.8, extend="both")
    bar.set_label("accuracy below the surface's best (points)")
    bar.outline.set_visible(False)
    _legend(figure, panels[0], triangles, confidence)
    return figure


def lowest(triangle: Triangle) -> float:
    """Points below the best of the worst network or place of the surface near networks: what the colours span."""
    below = [_points(n.accuracy, triangle.optimum) for n in triangle.networks if n.accuracy is not None]
    cells = triangle.optimum.cells
    below += [_points(cell.mean, triangle.optimum) for cell, far in zip(cells, _distance(triangle, _shares(cells)), strict=True)
              if far <= NEAR]
    return min(min(below, default=0.0), -0.01)


def _points(accuracy: float, optimum: Optimum) -> float:
    return 100 * (accuracy - optimum.mean)


def _distance(triangle: Triangle, shares: Floats) -> Floats:
    """To the nearest network."""
    return distance(shares, np.array([n.shares for n in triangle.networks if n.accuracy is not None]).reshape(-1, 3))


def _shares(cells: Sequence[Cell]) -> Floats:
    return np.array([(cell.depth, cell.width, cell.resolution) for cell in cells]).reshape(-1, 3)


def _frame(axes: Axes, title: str) -> None:
    """The triangle with lines at every fifth, ticks on the edges and the corners named."""
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-0.14, 1.14)
    axes.set_ylim(-0.17, 0.97)
    axes.set_title(title)
    corners = np.eye(3)
    for step in range(1, 5):
        share = step / 5
        for axis in range(3):
            ends = [share * corners[axis] + (1 - share) * corners[other] for other in range(3) if other != axis]
            axes.plot(*to_plane(np.array(ends)).T, color=GRID, linewidth=0.7, alpha=0.55, zorder=2.5)
        # depth is read on the right edge, width on the left, resolution below
        for axis, other, (dx, dy), side in ((0, 2, (0.02, 0.0), "left"), (1, 0, (-0.02, 0.0), "right"), (2, 1, (0.0, -0.02), "center")):
            x, y = to_plane((share * corners[axis] + (1 - share) * corners[other])[None])[0]
            axes.text(x + dx, y + dy, f"{100 * share:.0f}", ha=side, va="top" if side == "center" else "center", fontsize=9)
    axes.plot(*to_plane(np.array([*corners, corners[0]])).T, color=INK, linewidth=1.0, zorder=4, solid_joinstyle="round")
    axes.text(0.5, 0.90, "all to depth (α)", ha="center", va="bottom", fontweight="bold")
    axes.text(0.0, -0.03, "all to\nwidth (β)", ha="center", va="top", fontweight="bold")
    axes.text(1.0, -0.03, "all to\nresolution (γ)", ha="center", va="top", fontweight="bold")
    for x, y, angle, text in ((0.83, 0.48, -60, "depth (%)"), (0.17, 0.48, 60, "width (%)"), (0.5, -0.09, 0, "resolution (%)")):
        axes.text(x, y, text, rotation=angle, ha="center", va="center", fontsize=9.5)


def _surface(axes: Axes, triangle: Triangle, scale: Normalize) -> None:
    shares = lattice(50)
    mesh = Triangulation(*to_plane(shares).T)
    values = 100 * (scheffe(shares) @ np.array(triangle.optimum.scheffe) - triangle.optimum.mean)
    levels = MaxNLocator(9).tick_values(float(scale.vmin or -1.0), 0.0)
    axes.tricontourf(mesh, values, levels=levels, cmap=COLOURS, norm=scale, extend="both", zorder=1, alpha=0.4 if triangle.flat else None)
    far = np.minimum(_distance(triangle, shares), 2.0)
    if far.max() > NEAR:
        axes.tricontourf(mesh, far, levels=[NEAR, 3.0], colors=[PAPER], alpha=0.55, zorder=2)


def _region(axes: Axes, triangle: Triangle) -> None:
    """The line around the region; none where nothing is excluded."""
    inside = np.array([float(cell.inside) for cell in triangle.optimum.cells])
    x, y = to_plane(_shares(triangle.optimum.cells)).T
    if 0 < inside.sum() < len(inside):
        axes.tricontour(Triangulation(x, y), inside, levels=[0.5], colors=[INK], linewidths=2.2, zorder=5)
        axes.tricontour(Triangulation(x, y), inside, levels=[0.5], colors=[PAPER], linewidths=0.8, zorder=5.1)


def _networks(axes: Axes, triangle: Triangle, scale: Normalize) -> None:
    colours = mpl.colormaps[COLOURS]
    for n in sorted((n for n in triangle.networks if n.accuracy is not None), key=lambda n: (n.best, n.tied, n.compared)):
        (x, y), shade = to_plane(np.array([n.shares]))[0], colours(scale(_points(n.accuracy or 0.0, triangle.optimum)))
        shape, size = ("D", 9.5) if n.best else ("o", 8.5) if n.tied else ("X", 8) if n.compared else ("v", 7)
        axes.plot([x], [y], shape, color=shade, markersize=size, markeredgecolor=INK if n.tied or n.best else PAPER,
                  markeredgewidth=1.4 if n.tied or n.best else 0.8, zorder=6.5 if n.best else 6, clip_on=False)
    best = triangle.optimum.shares
    if not triangle.flat:
        x, y = to_plane(np.array([[best.depth, best.width, best.resolution]]))[0]
        axes.plot([x], [y], "*", color=ORANGE, markersize=19, markeredgecolor=INK, markeredgewidth=1.0, zorder=7, clip_on=False)


def _legend(figure: Figure, axes: Axes, triangles: Sequence[Triangle], confidence: float) -> None:
    networks = [n for triangle in triangles for n in triangle.networks if n.accuracy is not None]
    regions = any(0 < sum(cell.inside for cell in t.optimum.cells) < len(t.optimum.cells) for t in triangles)
    rows = [("*", 14, ORANGE, INK, "surface's optimum", any(not t.flat for t in triangles)),
            ("D", 8, GREY, INK, "best network", any(n.best for n in networks)),
            ("o", 8, GREY, INK, "tied with it", any(n.tied and not n.best for n in networks)),
            ("X", 8, GREY, PAPER, "behind", any(n.compared and not n.tied and not n.best for n in networks)),
            ("v", 7, GREY, PAPER, "of another cost, corrected", any(not n.compared for n in networks))]
    handles = [axes.plot([], [], shape, color=colour, markersize=size, markeredgecolor=edge, linestyle="none", label=label)[0]
               for shape, size, colour, edge, label, there in rows if there]
    if regions:
        handles += axes.plot([], [], color=INK, linewidth=2.2, label=f"region of the optimum ({100 * confidence:.4g} %)")
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3)


# ------------------------------------------------------------------ the race


@styled
def race_lines(racers: Sequence[Racer], seeds: Sequence[int]) -> Figure:
    """Mean accuracy of each network after each round that it ran; `seeds` is how many each had by then."""
    figure = Figure(figsize=(7.6, 4.6))
    axes = figure.subplots()
    looks = {"best": ("*", GREEN, 15, "best"), "finished": ("o", BLUE, 6, "ran to the end"),
             "not pursued": ("s", ORANGE, 5.5, "not pursued: stays tied"), "behind": ("X", GREY, 6.5, "behind: stopped")}
    for fate, (shape, colour, size, label) in reversed(looks.items()):
        for number, racer in enumerate(r for r in racers if r.fate == fate):
            points = [(k, 100 * m) for k, m in enumerate(racer.means, start=1) if m is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.5, alpha=0.85, zorder=3 if fate == "best" else 2)
                axes.plot(*points[-1], shape, color=colour, markersize=size, markeredgecolor=PAPER, markeredgewidth=0.8, zorder=4,
                          label="_" if number else label)
    axes.set_xticks(range(1, len(seeds) + 1), [f"{k}\n{n} trainings each" for k, n in enumerate(seeds, start=1)])
    axes.set_xlim(0.7, len(seeds) + 0.3)
    axes.set_xlabel("round of the race")
    axes.set_ylabel("mean validation accuracy so far (%)")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=4)
    return figure
