"""Analysis results as matplotlib figures: the only file that imports matplotlib.

Every function takes plain values and returns a `Figure` that belongs to nobody: no pyplot, no
global state, no backend. The style is a context around each function, never set at import. Colours
are Okabe and Ito's, told apart by colour-blind eyes, and marks differ in shape as well. Legends
stand outside the axes. `save` writes the same bytes for the same figure.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from scalesearch.analysis import Comparison, pareto_front, running_best
from scalesearch.config import format_count

P = ParamSpec("P")

# The page swaps these three for its own colours, so that one SVG reads on light and dark paper.
INK, GRID, PAPER = "#1c1e21", "#d9dce0", "#ffffff"
BLUE, ORANGE, GREEN, RED, GREY, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#8a9199", "#cc79a7"

MACS = "multiply-adds per image"
# More error bars than this are a fog; the front and the marked networks keep theirs.
MOST_BARS = 40
# More points or lines than this become pixels inside the SVG.
MOST_VECTORS = 3000
# Rows of the interval plot: the best ones; the table has all.
MOST_ROWS = 40

STYLE: dict[str, Any] = {
    "font.size": 11.0, "font.family": ["DejaVu Sans", "sans-serif"],
    "axes.titlesize": 11.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 9.0,
    "axes.labelsize": 11.0, "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.linewidth": 0.8,
    "axes.facecolor": PAPER, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.7, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "xtick.labelsize": 10.0, "ytick.labelsize": 10.0, "legend.frameon": False, "legend.fontsize": 10.0,
    "figure.facecolor": PAPER, "figure.constrained_layout.use": True, "savefig.dpi": 150,
    "svg.fonttype": "none", "svg.hashsalt": "scalesearch",
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a drawing function inside the style."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


def save(figure: Figure, path_stem: Path) -> tuple[Path, Path]:
    """Write `path_stem`.svg and .png, without dates, so that the same figure gives the same bytes."""
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    svg, png = stem.with_name(stem.name + ".svg"), stem.with_name(stem.name + ".png")
    with mpl.rc_context(STYLE):
        layout = figure.get_layout_engine()
        if layout is not None:  # once for both files: it is the slower half of drawing
            layout.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
        figure.savefig(png, metadata={"Software": None})
    return svg, png


# ------------------------------------------------------------------ rows


@dataclass(frozen=True, slots=True)
class Mark:
    """A network in a picture: cost in multiply-adds, accuracy and its standard deviation as fractions."""

    label: str
    macs: int
    accuracy: float | None
    deviation: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy (fraction) over cumulative training multiply-adds of one training; `role` picks how it is drawn."""

    label: str
    training_macs: tuple[float, ...]
    accuracy: tuple[float, ...]
    role: str = ""  # "", "best" or "baseline"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a panel: `colour` counts through the palette, lines of one label share a legend entry."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes among several; `steps` draws values that hold until the next one, `log` the vertical scale."""

    x_label: str
    y_label: str
    lines: Sequence[Line]
    steps: bool = False
    log: bool = False
    from_zero: bool = False


@dataclass(frozen=True, slots=True)
class Scaled:
    """A network of a scaling grid: every (α, β, γ) that builds it, and where it stands."""

    label: str
    coefficients: tuple[tuple[float, float, float], ...]
    accuracy: float | None
    tied: bool = False
    best: bool = False
    nominal_choice: bool = False
    compared: bool = True  # False: trained beside the comparison, at another cost


# ------------------------------------------------------------------ accuracy against cost


@styled
def accuracy_against_cost(points: Sequence[Mark], *, baseline: Mark | None = None, winner: Mark | None = None,
                          window: tuple[float, float] | None = None, published: Sequence[Mark] = (),
                          accuracy_label: str = "validation accuracy (%)",
                          names: tuple[str, str, str] = ("evaluated networks", "stock baseline", "winner")) -> Figure:
    """Every network by cost and accuracy with the Pareto front, winner and stock baseline; `names` are the legend's.

    `published` networks were trained in full on ImageNet: they get a panel and a scale of their own
    beside it, because the two accuracies cannot be compared.
    """
    figure = Figure(figsize=(10.0 if published else 7.6, 5.0))
    axes, *others = figure.subplots(1, 2, width_ratios=(3, 2)) if published else (figure.subplots(),)
    points = [p for p in points if p.accuracy is not None]
    if window:
        axes.axvspan(*window, color=ORANGE, alpha=0.13, linewidth=0, label="window of the search")
    _scatter(axes, points, baseline, winner, names)
    _cost_axis(axes, [m.macs for m in (*points, *filter(None, (baseline, winner)))], window)
    axes.set_ylabel(accuracy_label)
    axes.set_title("This run" if published else "")
    for other in others:
        _published(other, published)
    _legend(figure, axes)
    return figure


def _scatter(axes: Axes, points: Sequence[Mark], baseline: Mark | None, winner: Mark | None, names: tuple[str, str, str]) -> None:
    front = pareto_front(points)
    crowd = len(points) > 60
    axes.plot([p.macs for p in points], [_percent(p.accuracy) for p in points], "o", color=GREY, markersize=3.5 if crowd else 5.5,
              alpha=0.6 if crowd else 0.9, markeredgewidth=0, zorder=2, label=names[0], rasterized=len(points) > MOST_VECTORS)
    if front:
        costs, accuracies = [p.macs for p in front], [_percent(p.accuracy) for p in front]
        axes.step(costs, accuracies, where="post", color=BLUE, linewidth=1.3, zorder=3)
        axes.plot(costs, accuracies, "o", color=BLUE, markersize=5.5, zorder=3.1, label="Pareto front")
    marked = [m for m in (baseline, winner) if m is not None and m.accuracy is not None]
    _bars(axes, [*(points if len(points) <= MOST_BARS else front), *marked])
    looks = {id(baseline): ("D", RED, 9, names[1]), id(winner): ("*", GREEN, 17, names[2])}
    for mark in marked:
        shape, colour, size, name = looks[id(mark)]
        axes.plot([mark.macs], [_percent(mark.accuracy)], shape, color=colour, markersize=size, markeredgecolor=PAPER,
                  markeredgewidth=1.0, zorder=5, label=f"{name}: {mark.label}" if mark.label else name)


def _bars(axes: Axes, marks: Sequence[Mark]) -> None:
    known = {(m.macs, m.accuracy): 100 * m.deviation for m in marks if m.deviation and m.accuracy is not None}
    if known:
        costs, accuracies = zip(*known, strict=True)
        axes.errorbar(costs, [_percent(a) for a in accuracies], yerr=list(known.values()), fmt="none", ecolor=INK, elinewidth=0.8,
                      alpha=0.55, capsize=2, zorder=2.5, label="± 1 standard deviation")


def _published(axes: Axes, published: Sequence[Mark]) -> None:
    costs, accuracies = [p.macs for p in published], [_percent(p.accuracy) for p in published]
    axes.plot(costs, accuracies, "o-", color=GREY, markersize=5, linewidth=1.0)
    for p in published:
        _annotate(axes, p.label, p.macs, _percent(p.accuracy))
    _cost_axis(axes, [p.macs for p in published])
    axes.margins(y=0.1)
    axes.set_ylabel("published ImageNet top-1, full training (%)")
    axes.set_title("For scale only: another accuracy")


# ------------------------------------------------------------------ training


@styled
def accuracy_against_training(curves: Sequence[Curve], *, accuracy_label: str = "validation accuracy (%)") -> Figure:
    """Accuracy over cumulative training multiply-adds (forward and backward), a line a training."""
    figure = Figure(figsize=(7.6, 4.6))
    axes = figure.subplots()
    looks = {"": (GREY, 0.9, 2.0), "baseline": (RED, 2.0, 3.0), "best": (GREEN, 2.2, 4.0)}
    seen: set[str] = set()
    for curve in sorted(curves, key=lambda c: looks[c.role][2]):
        colour, width, order = looks[curve.role]
        many = not curve.role and len(curves) > 20
        spend = [(x, 100 * y) for x, y in zip(curve.training_macs, curve.accuracy, strict=True) if x > 0 and math.isfinite(y)]
        if spend:
            label = curve.label if curve.role and curve.label not in seen else None
            label = "other candidates" if not curve.role and "" not in seen else label
            seen.add(curve.label if curve.role else "")
            axes.plot(*zip(*spend, strict=True), marker="o", markersize=2.5 if many else 3.5, color=colour, linewidth=width,
                      alpha=0.4 if many else 0.9, zorder=order, label=label, rasterized=len(curves) > MOST_VECTORS // 10)
    _log_axis(axes, [x for curve in curves for x in curve.training_macs])
    axes.set_xlabel("cumulative training multiply-adds of the candidate (3 × forward, log scale)")
    axes.set_ylabel(accuracy_label)
    _legend(figure, axes)
    return figure


@styled
def line_panels(panels: Sequence[Panel], *, columns: int = 2) -> Figure:
    """Small panels side by side, `columns` in a row, with one legend for all; what is not a number is left out."""
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(10.0, 0.7 + 2.9 * rows))
    places = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(places.flat, panels, strict=False):
        _panel(axes, panel)
    for axes in list(places.flat)[len(panels):]:
        axes.set_axis_off()
    entries = {line.get_label(): line for axes in places.flat for line in axes.lines}
    shown = [(line, str(label)) for label, line in entries.items() if not str(label).startswith("_")]
    if shown:
        figure.legend(*zip(*shown, strict=True), loc="outside lower center", ncols=min(len(shown), 4))
    return figure


def _panel(axes: Axes, panel: Panel) -> None:
    palette = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)
    for line in panel.lines:
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        if points:
            axes.plot(*zip(*points, strict=True), color=palette[line.colour % len(palette)], label=line.label or None,
                      linestyle=(0, (4, 2)) if line.dashed else "-", linewidth=1.5, alpha=0.9,
                      marker="o" if len(points) <= 30 and not panel.steps else "", markersize=3.0,
                      drawstyle="steps-post" if panel.steps else "default")
    if panel.log:
        axes.set_yscale("log")
    elif panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)


@styled
def reward_over_evaluations(rewards: Sequence[float | None], *, baseline: float | None = None,
                            reward_label: str = "reward") -> Figure:
    """Reward of each evaluation in the order of finishing, with the best so far; failures on the lower edge."""
    figure = Figure(figsize=(7.6, 4.4))
    axes = figure.subplots()
    numbers = list(range(1, len(rewards) + 1))
    good = [(n, r) for n, r in zip(numbers, rewards, strict=True) if r is not None and math.isfinite(r)]
    failed = [n for n, r in zip(numbers, rewards, strict=True) if r is None or not math.isfinite(r)]
    if good:
        axes.plot(*zip(*good, strict=True), "o", color=GREY, markersize=3.5 if len(good) > 60 else 5.5, alpha=0.7,
                  markeredgewidth=0, label="evaluation", rasterized=len(good) > MOST_VECTORS)
        best = [(n, b) for n, b in zip(numbers, running_best(rewards), strict=True) if b is not None]
        axes.step(*zip(*best, strict=True), where="post", color=BLUE, linewidth=2.0, label="best so far")
    if baseline is not None:
        axes.axhline(baseline, color=RED, linestyle=(0, (5, 3)), linewidth=1.4, label="stock baseline")
    if failed:
        axes.plot(failed, [0.0] * len(failed), "x", color=ORANGE, markersize=7, markeredgewidth=1.6, clip_on=False,
                  transform=axes.get_xaxis_transform(), label="failed")
    axes.set_xlim(0, max(2, len(rewards) + 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("evaluation (number, in the order of finishing)")
    axes.set_ylabel(reward_label)
    _legend(figure, axes)
    return figure


# ------------------------------------------------------------------ scaling grids


@styled
def coefficient_panels(networks: Sequence[Scaled], *, paper: tuple[float, float, float] | None = (1.2, 1.1, 1.15),
                       accuracy_label: str = "mean accuracy (%)") -> Figure:
    """α, β, γ in three pairwise panels, a mark a network, coloured by mean accuracy.

    One network has many triples: its mark is their middle, its bars span them. `paper` is the
    published choice for EfficientNet-B0, drawn as a cross.
    """
    figure = Figure(figsize=(11.0, 4.8))
    panels = figure.subplots(1, 3)
    shown = [n for n in networks if n.accuracy is not None and n.coefficients]
    accuracies = [_percent(n.accuracy) for n in shown] or [0.0, 1.0]
    low, high = min(accuracies), max(accuracies)
    scale = Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5)
    colours = mpl.colormaps["viridis"]
    names = ("α, depth (layers ×)", "β, width (channels ×)", "γ, resolution (pixels ×)")
    for axes, (first, second) in zip(panels, ((0, 1), (0, 2), (1, 2)), strict=True):
        for network in sorted(shown, key=lambda n: (n.best, n.tied, n.accuracy or 0)):
            _coefficients(axes, network, first, second, colours(scale(_percent(network.accuracy))))
        if paper:
            axes.plot([paper[first]], [paper[second]], "x", color=INK, markersize=9, markeredgewidth=2.0, zorder=7)
        axes.set_xlabel(names[first])
        axes.set_ylabel(names[second])
        axes.margins(0.08)
    bar = figure.colorbar(mpl.cm.ScalarMappable(scale, colours), ax=list(panels), pad=0.015, aspect=28)
    bar.set_label(accuracy_label)
    bar.outline.set_visible(False)
    _shapes(figure, panels[0], shown, paper)
    return figure


def _coefficients(axes: Axes, network: Scaled, first: int, second: int, colour: Any) -> None:
    xs, ys = sorted({t[first] for t in network.coefficients}), sorted({t[second] for t in network.coefficients})
    x, y = (xs[0] + xs[-1]) / 2, (ys[0] + ys[-1]) / 2
    order = 5.0 if network.best else 4.0 if network.tied else 3.0
    for across, along in (([xs[0], xs[-1]], [y, y]), ([x, x], [ys[0], ys[-1]])):
        axes.plot(across, along, color=colour, linewidth=1.6, alpha=0.7, solid_capstyle="butt", zorder=order - 1.5)
    shape, size, edge = ("*", 19, INK) if network.best else ("o", 10, INK) if network.tied else \
        ("o", 6, PAPER) if network.compared else ("v", 7, PAPER)
    axes.plot([x], [y], shape, color=colour, markersize=size, markeredgecolor=edge, markeredgewidth=1.3 if edge == INK else 0.6,
              zorder=order)
    if network.nominal_choice:
        axes.plot([x], [y], "s", color="none", markersize=18, markeredgecolor=RED, markeredgewidth=1.8, zorder=6)


def _shapes(figure: Figure, axes: Axes, networks: Sequence[Scaled], paper: object) -> None:
    """Legend entries of shapes, in ink: their colour is the accuracy."""
    rows = [("*", 15, "best", any(n.best for n in networks)),
            ("o", 10, "cannot be told from the best", any(n.tied and not n.best for n in networks)),
            ("o", 6, "significantly worse", any(not n.tied and n.compared for n in networks)),
            ("v", 7, "other constraint, another cost", any(not n.compared for n in networks))]
    handles = []
    for shape, size, label, there in rows:
        if there:
            edge = INK if size > 9 else PAPER
            handles += axes.plot([], [], shape, color=GREY, markersize=size, markeredgecolor=edge, label=label)
    if any(n.nominal_choice for n in networks):
        handles += axes.plot([], [], "s", color="none", markersize=12, markeredgecolor=RED, markeredgewidth=1.8,
                             label="choice under α·β²·γ² ≈ 2")
    if paper:
        handles += axes.plot([], [], "x", color=INK, markersize=9, markeredgewidth=2.0, label="published for EfficientNet-B0")
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


@styled
def comparison_intervals(comparison: Comparison, labels: Mapping[str, str] | None = None, of_means: float | None = None) -> Figure:
    """Each network's mean with its interval, and its difference to the best with the simultaneous interval.

    of_means   confidence of the means' intervals; None: that of the differences
    """
    rows = [s for s in comparison.standings if s.mean is not None][:MOST_ROWS]
    figure = Figure(figsize=(10.0, 1.9 + 0.30 * max(len(rows), 3)))
    left, right = figure.subplots(1, 2, sharey=True)
    for place, row in enumerate(rows):
        best = row.id == comparison.best
        shape, size, colour = ("*", 14, GREEN) if best else ("o", 6.5, BLUE) if row.tied else ("X", 6.5, GREY)
        for axes, centre, interval in ((left, row.mean, row.interval), (right, row.difference, None if best else row.bounds)):
            if interval is not None:
                axes.plot([100 * interval.low, 100 * interval.high], [place, place], color=colour, linewidth=1.8,
                          solid_capstyle="butt")
            axes.plot([_percent(centre)], [place], shape, color=colour, markersize=size, markeredgecolor=PAPER,
                      markeredgewidth=0.6)
    right.axvline(0, color=INK, linewidth=1.0)
    left.set_yticks(range(len(rows)), [(labels or {}).get(row.id, row.id) for row in rows])
    left.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
    left.set_xlabel(f"mean accuracy (%), {100 * (of_means or comparison.confidence):.4g}% interval")
    right.set_xlabel(f"difference to the best (points),\nsimultaneous {100 * comparison.confidence:.4g}% interval")
    left.set_title("Mean over folds or seeds")
    right.set_title("Tied where the interval holds 0" if comparison.critical else "Too few folds for an interval")
    kinds = (("*", GREEN, "best", True), ("X", GREY, "significantly worse", any(not r.tied for r in rows)),
             ("o", BLUE, "cannot be told from the best", any(r.tied and r.id != comparison.best for r in rows)))
    handles = [left.plot([], [], shape, color=colour, markersize=9, label=label)[0]
               for shape, colour, label, there in kinds if there]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


# ------------------------------------------------------------------ families


@styled
def family_costs(members: Sequence[Mapping[str, Any]], *, growth: float = 2.0) -> Figure:
    """Realised cost of each member against φ, beside growth^φ; accuracies in a second panel where known.

    `members` are rows with phi, cost_ratio, macs, and accuracy where there is one.
    """
    rows = sorted(members, key=lambda m: m["phi"])
    scored = [m for m in rows if m.get("accuracy") is not None]
    figure = Figure(figsize=(10.0 if scored else 7.6, 4.6))
    axes, *others = figure.subplots(1, 2) if scored else (figure.subplots(),)
    phis = [m["phi"] for m in rows]
    axes.plot(phis, [growth**phi for phi in phis], "--", color=GREY, linewidth=1.4, label=f"{growth:g}^φ")
    nominal = [(m["phi"], m["nominal"]["cost"]) for m in rows if m.get("nominal")]
    if nominal:
        axes.plot(*zip(*nominal, strict=True), ":", color=ORANGE, linewidth=2.0, label="nominal depth·width²·resolution²")
    axes.plot(phis, [m["cost_ratio"] for m in rows], "o-", color=BLUE, markersize=7, linewidth=1.4, label="realised")
    for m in rows:
        # left above: the other lines run below
        axes.annotate(format_count(m["macs"]), (m["phi"], m["cost_ratio"]), xytext=(-7, 6), textcoords="offset points",
                      ha="right", fontsize=9.5)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.margins(y=0.12, x=0.14)
    axes.set_xlabel("φ (compound coefficient)")
    axes.set_ylabel("multiply-adds, relative to the base (log scale)")
    for other in others:
        _members(other, scored)
    _legend(figure, axes)
    return figure


def _members(axes: Axes, scored: Sequence[Mapping[str, Any]]) -> None:
    costs, accuracies = [m["macs"] for m in scored], [_percent(m["accuracy"]) for m in scored]
    intervals = [m.get("accuracy_interval") or (m["accuracy"], m["accuracy"]) for m in scored]
    reach = [[100 * (m["accuracy"] - low) for m, (low, _) in zip(scored, intervals, strict=True)],
             [100 * (high - m["accuracy"]) for m, (_, high) in zip(scored, intervals, strict=True)]]
    axes.errorbar(costs, accuracies, yerr=reach, fmt="o-", color=BLUE, markersize=7, linewidth=1.4, capsize=4)
    for m, cost, accuracy in zip(scored, costs, accuracies, strict=True):
        _annotate(axes, f"φ={m['phi']:g}", cost, accuracy)
    _cost_axis(axes, [m["macs"] for m in scored])
    axes.set_ylabel("validation accuracy (%)")


# ------------------------------------------------------------------ axes


def _percent(fraction: float | None) -> float:
    return math.nan if fraction is None else 100.0 * fraction


def _annotate(axes: Axes, text: str, x: float, y: float) -> None:
    """A label right below a point: curves here rise, so nothing is there."""
    axes.annotate(text, (x, y), xytext=(7, -12), textcoords="offset points", fontsize=9.5)


def _cost_axis(axes: Axes, macs: Sequence[float], window: tuple[float, float] | None = None) -> None:
    _log_axis(axes, [*macs, *(window or ())])
    axes.set_xlabel(f"{MACS} (log scale)")


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    """Log scale with a handful of ticks at round counts, also where all lies within a factor of 1.1."""
    axes.set_xscale("log")
    values = [v for v in values if v > 0]
    if values:
        low, high = min(values), max(values)
        pad = max((high / low) ** 0.06, 1.02)
        axes.set_xlim(low / pad, high * pad)
        axes.xaxis.set_major_locator(FixedLocator(round_ticks(low / pad, high * pad)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers in [low, high], evenly spread in their logarithm as far as they are round.

    >>> [short_count(tick) for tick in round_ticks(3.4e8, 4.1e8)], [short_count(tick) for tick in round_ticks(3e8, 4e10)]
    (['340M', '360M', '380M', '400M'], ['500M', '1G', '2G', '5G', '10G', '20G'])
    """
    decades = [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for mantissas in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [m * d for d in decades for m in mantissas if low <= m * d <= high]
        if 3 <= len(ticks) <= most:
            return ticks
    if len(ticks) > most:
        return ticks[:: math.ceil(len(ticks) / most)]
    return [float(tick) for tick in MaxNLocator(most - 1, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]


def short_count(value: float) -> str:
    """A tick's count without idle zeros: 400M, 1.5G, 30P.

    >>> short_count(4e8), short_count(1.5e9), short_count(3e16)
    ('400M', '1.5G', '30P')
    """
    for size, suffix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:g}"


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles) if len(handles) <= 4 else 3)
