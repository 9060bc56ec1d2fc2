"""What one way of scaling gains over the best of others at equal cost, from accuracies on shared seeds or folds.

The best of the others is picked after the fact. The intervals of the differences to *all* of them hold
together (Dunnett's, the way in question is named beforehand), so the difference to the best, which is the
smallest of them, lies between the smallest lower and the smallest upper end, whichever the best one is.

Rounding leaves networks a little off the cost they were meant to have. Accuracies are carried to it along
the slope of accuracy on log2 cost, fitted to all networks of the base; the slope's own error, whatever the
line does not fit included, widens the intervals by as much as it was used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scalesearch.analysis import Fit, Floats, Interval, overlap_ratio, padded, two_way
from scalesearch.contrasts import dunnett_critical

Verdict = Literal["better", "worse", "tied"]

# Below this a difference of means of fractions is rounding.
_SAME = 1e-12


@dataclass(frozen=True, slots=True)
class Scaled:
    """A network of a sweep: the way it was scaled, the cost it should have and has (multiply-adds), accuracies by seed.

    `target` None: it competes with no other, but helps to tell noise and slope (the base, say).
    """

    id: str
    way: str
    target: float | None
    cost: float
    accuracies: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Slope:
    """Accuracy (a fraction) for each doubling of cost, and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Against:
    """A difference at equal cost, a fraction, with the interval that holds together with the others."""

    way: str
    difference: float
    bounds: Interval | None


@dataclass(frozen=True, slots=True)
class Gain:
    """`way` minus the best of the others at `target` (None: means over all targets).

    best      the other one that looks best here
    gain      difference to it at equal cost; `bounds` covers that it was picked after the fact
    verdict   better: the interval is above 0, worse: below, tied: it holds 0, None: there is no interval
    against   the difference to each of the others
    """

    way: str
    target: float | None
    best: str
    gain: float
    bounds: Interval | None
    verdict: Verdict | None
    against: tuple[Against, ...]


@dataclass(frozen=True, slots=True)
class Gains:
    """All comparisons of one base.

    corrected    id → mean at exactly the target; correction: what was added for it. Both only of networks with a target
    deviation    residual standard deviation of one accuracy, network and seed effects removed; `degrees` of freedom
    """

    gains: tuple[Gain, ...]
    slope: Slope | None
    corrected: Mapping[str, float]
    correction: Mapping[str, float]
    deviation: float | None
    degrees: int
    confidence: float
    method: str


def gains_at_equal_cost(networks: Sequence[Scaled], ways: Sequence[str], rivals: Sequence[str], *, confidence: float = 0.95,
                        test_fraction: float | None = None) -> Gains:
    """Each of `ways` against the best of the `rivals` at every target that both have, and over all of them together.

    Seeds are the same for all networks; None is a training that failed. Without residual degrees of freedom
    (one seed) there are differences and no intervals. `test_fraction` is 1/K where seeds are K folds:
    widened as Nadeau & Bengio 2003 do. Each interval has the confidence by itself, not all ways together.
    """
    table = _Table.of(networks, overlap_ratio(test_fraction))
    if table is None:
        return Gains((), None, {}, {}, None, 0, confidence, "nothing to compare: no training has succeeded")
    targets = sorted({n.target for n in networks if n.target is not None})
    found = [gain for way in ways for at in _pools(targets)
             if (gain := _gain(table, way, [r for r in rivals if r != way], at, confidence)) is not None]
    aimed = [n for n in networks if n.target is not None and n.id in table.place]
    correction = {n.id: -table.slope.value * _off(n) if table.slope else 0.0 for n in aimed}
    corrected = {n.id: float(table.fit.means[table.place[n.id]]) + correction[n.id] for n in aimed}
    deviation = math.sqrt(table.fit.variance) if table.fit.degrees else None
    return Gains(tuple(found), table.slope, corrected, correction, deviation, table.fit.degrees, confidence, _method(table, confidence))


def _pools(targets: Sequence[float]) -> list[tuple[float, ...]]:
    """Each target alone, then all together where there are several."""
    return [*((target,) for target in targets), *([tuple(targets)] if len(targets) > 1 else [])]


def _off(network: Scaled) -> float:
    """Doublings of cost beyond the target."""
    assert network.target is not None
    return math.log2(network.cost / network.target)


@dataclass(frozen=True)
class _Table:
    """The fitted accuracies: who is in which row, the slope, and the networks by way and target."""

    fit: Fit
    place: Mapping[str, int]
    slope: Slope | None
    aimed: Mapping[tuple[str, float], Scaled]
    overlap: float
    seeds: int

    @classmethod
    def of(cls, networks: Sequence[Scaled], overlap: float) -> _Table | None:
        seeds = max((len(n.accuracies) for n in networks), default=0)
        rows = {n.id: padded(n.accuracies, seeds) for n in networks}
        alive = {id: row for id, row in rows.items() if np.isfinite(row).any()}
        if not alive:
            return None
        fit = two_way(np.array(list(alive.values()), dtype=float))
        costs = {n.id: n.cost for n in networks}
        aimed = {(n.way, n.target): n for n in networks if n.target is not None and n.id in alive}
        return cls(fit, {id: i for i, id in enumerate(alive)}, fit_slope([costs[id] for id in alive], fit), aimed, overlap, seeds)


def fit_slope(costs: Sequence[float], fit: Fit) -> Slope | None:
    """Least squares of the networks' means on log2 cost; None for fewer than three networks or one cost.

    The error is the larger of what the seeds' noise explains and what the scatter about the line shows.
    """
    x = np.log2(np.asarray(costs, dtype=float))
    x = x - x.mean()
    spread = float(x @ x)
    if len(x) < 3 or spread < 1e-6:
        return None
    weights = x / spread
    value = float(weights @ fit.means)
    residuals = fit.means - fit.means.mean() - value * x
    noise = fit.variance * max(float(weights @ fit.inverse @ weights), 0.0)
    scatter = float(residuals @ residuals) / (len(x) - 2) / spread
    return Slope(value, math.sqrt(max(noise, scatter)))


def _gain(table: _Table, way: str, rivals: Sequence[str], targets: Sequence[float], confidence: float) -> Gain | None:
    """None where the way or every rival has no accuracy at one of the targets."""
    there = [rival for rival in rivals if all((rival, target) in table.aimed for target in targets)]
    if not there or not all((way, target) in table.aimed for target in targets):
        return None
    rows = {rival: _row(table, way, rival, targets) for rival in there}
    critical = _critical(table.fit, [row for row, _ in rows.values()], confidence)
    against = tuple(_against(table, rival, *rows[rival], critical) for rival in there)
    closest = min(against, key=lambda row: row.difference)
    bounds = None
    if all(row.bounds is not None for row in against):
        bounds = Interval(min(row.bounds.low for row in against if row.bounds), min(row.bounds.high for row in against if row.bounds))
    return Gain(way, targets[0] if len(targets) == 1 else None, closest.way, closest.difference, bounds, _verdict(bounds), against)


def _row(table: _Table, way: str, rival: str, targets: Sequence[float]) -> tuple[Floats, float]:
    """The contrast of network means, averaged over the targets, and by how many doublings the way costs more."""
    row, off = np.zeros(len(table.fit.means)), 0.0
    for target in targets:
        mine, other = table.aimed[way, target], table.aimed[rival, target]
        row[table.place[mine.id]] += 1.0 / len(targets)
        row[table.place[other.id]] -= 1.0 / len(targets)
        off += (_off(mine) - _off(other)) / len(targets)
    return row, off


def _critical(fit: Fit, rows: Sequence[Floats], confidence: float) -> float | None:
    rows = [row for row in rows if np.abs(row).max() > 0]  # the same network by two ways differs by nothing
    if not fit.degrees or not rows:
        return None
    matrix = np.array(rows)
    covariance = matrix @ fit.inverse @ matrix.T
    scale = np.sqrt(np.diag(covariance))
    correlations = (covariance / np.outer(scale, scale))[np.triu_indices(len(rows), 1)]
    # ½ when no cell is missing; else their mean stands for all (Hochberg & Tamhane 1987, ch. 5)
    return dunnett_critical(len(rows), fit.degrees, confidence, round(min(float(correlations.mean()), 0.999), 6) if len(rows) > 1 else 0.5)


def _against(table: _Table, rival: str, row: Floats, off: float, critical: float | None) -> Against:
    slope = table.slope or Slope(0.0, 0.0)
    difference = float(row @ table.fit.means) - slope.value * off
    if np.abs(row).max() == 0:
        return Against(rival, 0.0, Interval(0.0, 0.0) if table.fit.degrees else None)
    if critical is None or not np.allclose(table.fit.projector @ row, row, atol=1e-6):
        return Against(rival, difference, None)
    noise = table.fit.variance * (max(float(row @ table.fit.inverse @ row), 0.0) + table.overlap * float(row @ row))
    # The slope is mostly that of the chord from the base; accuracy flattens as cost grows, so at the target it may be half of it.
    half = critical * math.sqrt(noise + (off * math.hypot(slope.error, slope.value / 2)) ** 2)
    return Against(rival, difference, Interval(difference - half, difference + half))


def _verdict(bounds: Interval | None) -> Verdict | None:
    if bounds is None:
        return None
    return "better" if bounds.low > _SAME else "worse" if bounds.high < -_SAME else "tied"


def _method(table: _Table, confidence: float) -> str:
    """One sentence for the page."""
    count, seeds = len(table.place), table.seeds
    size = f"{count} network{'s' * (count != 1)} × {seeds} seed{'s' * (seeds != 1)}"
    if not table.fit.degrees:
        return f"no intervals: {size} leave nothing to estimate the noise from"
    folds = ", widened because folds share images" if table.overlap else ""
    deviation = f"residual deviation {100 * math.sqrt(table.fit.variance):.2f} points on {table.fit.degrees} degrees of freedom"
    return (f"{confidence:.0%} intervals over {size}, the seeds' own effects removed ({deviation}){folds}. Dunnett's differences to all "
            "single dimensions hold together, so the difference to the best of them may be read although it was picked after the fact")
