"""Numbers from finished records: fronts, intervals, comparisons with the best, rank correlation.

Nothing here draws or reads files. The comparison answers one question: which networks can the
measured accuracies tell from the best one? Networks are trained on the same folds (or seeds), so a
fold that is hard is hard for all of them and takes no part in the difference; and because the best
is picked after the fact from many, the intervals of its differences are simultaneous.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Sums of a few hundred fractions are exact to about 1e-14; below this two means are one.
_SAME = 1e-12


class Measured(Protocol):
    """Anything with a cost and an accuracy: a record, a row, a point."""

    @property
    def macs(self) -> int: ...

    @property
    def accuracy(self) -> float | None: ...


M = TypeVar("M", bound=Measured)


class Interval(NamedTuple):
    """Both ends of a confidence interval."""

    low: float
    high: float


# ------------------------------------------------------------------ cost against accuracy


def pareto_front(points: Sequence[M]) -> list[M]:
    """The points that no other beats in both multiply-adds and accuracy, cheapest first.

    A point is beaten by one that costs no more and scores no less and differs in either. Equal
    points stay side by side; points without an accuracy (failures) take no part.
    """
    order = sorted((p for p in points if p.accuracy is not None), key=lambda p: (p.macs, -_accuracy(p)))
    front: list[M] = []
    for point in order:
        best = front[-1] if front else None
        if best is None or _accuracy(point) > _accuracy(best) or (point.macs, point.accuracy) == (best.macs, best.accuracy):
            front.append(point)
    return front


def best_under(points: Sequence[M], macs: float) -> M | None:
    """The most accurate point of at most `macs` multiply-adds; of equals the cheapest, then the first."""
    fitting = [p for p in points if p.accuracy is not None and p.macs <= macs]
    return max(fitting, key=lambda p: (_accuracy(p), -p.macs), default=None)


def _accuracy(point: Measured) -> float:
    assert point.accuracy is not None
    return point.accuracy


def running_best(rewards: Sequence[float | None]) -> list[float | None]:
    """The highest reward so far at every evaluation; None until the first one that succeeded.

    >>> running_best([None, 0.5, 0.4, None, 0.7])
    [None, 0.5, 0.5, 0.5, 0.7]
    """
    best: float | None = None
    path = []
    for reward in rewards:
        if reward is not None and not math.isnan(reward) and (best is None or reward > best):
            best = reward
        path.append(best)
    return path


@dataclass(frozen=True, slots=True)
class Optimism:
    """A winner and the stock baseline, scored by the model that picked the winner and by a second one.

    The first model's gain is the maximum of many predictions and so too high on average; the second
    was fitted on other data and did not pick.
    """

    winner: float
    baseline: float
    winner_second: float
    baseline_second: float

    @property
    def gain(self) -> float:
        return self.winner - self.baseline

    @property
    def gain_second(self) -> float:
        return self.winner_second - self.baseline_second

    @property
    def kept(self) -> float | None:
        """The share of the gain that the second model confirms; None where there was no gain."""
        return self.gain_second / self.gain if self.gain > 0 else None


# ------------------------------------------------------------------ intervals


def overlap_ratio(test_fraction: float | None) -> float:
    """n_test / n_train of a fold; 0 where runs are independent seeds on one split.

    >>> overlap_ratio(1 / 5), overlap_ratio(None)
    (0.25, 0.0)
    """
    return 0.0 if test_fraction is None else test_fraction / (1.0 - test_fraction)


def mean_interval(values: Sequence[float], confidence: float = 0.95, test_fraction: float | None = None) -> Interval | None:
    """Student's interval of the mean of fractions: mean ± t·s·√(1/n + n_test/n_train), cut to [0, 1].

    `test_fraction` is the share of the images held out by each fold (1/K for K folds); None for
    independent seeds, where the second term vanishes. None for fewer than two values.
    Source of the second term: Nadeau & Bengio, Inference for the Generalization Error, 2003.
    """
    numbers = np.asarray([v for v in values if v is not None and math.isfinite(v)], dtype=float)
    n = len(numbers)
    if n < 2:
        return None
    half = _student(confidence, n - 1) * float(numbers.std(ddof=1)) * math.sqrt(1 / n + overlap_ratio(test_fraction))
    return _cut(float(numbers.mean()), half)


def _cut(mean: float, half: float) -> Interval:
    """An accuracy is never below 0 or above 1, whatever a symmetric interval says."""
    return Interval(max(0.0, mean - half), min(1.0, mean + half))


@functools.lru_cache(maxsize=1024)
def _student(confidence: float, degrees: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, degrees))


@functools.lru_cache(maxsize=1024)
def _studentized_range(confidence: float, groups: int, degrees: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(confidence, groups, degrees))


# ------------------------------------------------------------------ comparison with the best


@dataclass(frozen=True, slots=True)
class Standing:
    """One network beside the best. Accuracies and differences are fractions in [0, 1].

    n           folds (or seeds) that succeeded
    mean        their mean; adjusted for the missing ones where some failed; None where all did
    interval    of the mean, over new images and new training runs of this size
    difference  mean − the best's mean, at most 0 among networks that finished equally many folds
    bounds      simultaneous interval of the difference
    tied        the measurements cannot tell it from the best: `bounds` holds 0 or there are none
    """

    id: str
    n: int
    mean: float | None
    interval: Interval | None = None
    difference: float | None = None
    bounds: Interval | None = None
    tied: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """All networks, the best first; `compare_with_best` documents the method.

    best        id of the best network, None where none succeeded
    deviation   residual standard deviation, network and fold effects removed; None: not estimable
    degrees     its degrees of freedom
    critical    Tukey's q for `confidence`, the number of networks and `degrees`
    visible     the smallest difference that two networks with all folds can be told apart by
    """

    best: str | None
    standings: tuple[Standing, ...]
    folds: int
    confidence: float
    overlap: float
    deviation: float | None = None
    degrees: int = 0
    critical: float | None = None
    visible: float | None = None

    def __getitem__(self, id: str) -> Standing:
        return next(standing for standing in self.standings if standing.id == id)

    @property
    def tied(self) -> tuple[str, ...]:
        """Ids of the networks that cannot be told from the best, itself included."""
        return tuple(s.id for s in self.standings if s.tied)

    @property
    def method(self) -> str:
        """One sentence for the page: what was computed from how much."""
        count = sum(s.n > 0 for s in self.standings)
        networks, folds = ("s" * (number != 1) for number in (count, self.folds))
        size = f"{count} network{networks} × {self.folds} fold{folds} or seed{folds}"
        if self.critical is None:
            return f"no intervals of differences: {size} leave nothing to estimate their noise from"
        overlap = f", widened because folds share images (n_test/n_train = {self.overlap:.3g})"
        return (f"Tukey's studentized range at {100 * self.confidence:.4g}% over {size}, fold effects removed "
                f"(q = {self.critical:.3f}, {self.degrees} degrees of freedom, "
                f"residual deviation {100 * (self.deviation or 0):.2f} points){overlap if self.overlap else ''}")


def compare_with_best(accuracies: Mapping[str, Sequence[float | None]], confidence: float = 0.95,
                      test_fraction: float | None = None) -> Comparison:
    """Which networks can be told from the best one, from accuracies on shared folds or seeds.

    `accuracies[id][j]` is the network's accuracy on fold (or seed) j, the same j for all; None, NaN
    or a short list is a run that failed or has not finished. `test_fraction` is 1/K for K folds and
    None for seeds on one split. Fractions in [0, 1]; intervals of means are cut to that range.

    Model        y_ij = network_i + fold_j + e_ij, least squares, cells may be missing;
                 s² = residual sum of squares / ν, ν = cells − free parameters
    Difference   (mean_i − mean_best) ± q/√2 · s·√(v_i,best + 2·n_test/n_train), with q the upper
                 quantile of the studentized range of all compared networks with ν degrees of
                 freedom. v is 1/n + 1/n when no cell is missing, so this is Tukey's HSD with the
                 term of Nadeau & Bengio; otherwise the contrast's own variance (Tukey–Kramer).
                 All pairs are covered at once, so the best may be picked from the same numbers.
    Mean         mean_i ± t·√(u·(1/n_i + n_test/n_train)), u = fold variance + s², t with
                 Satterthwaite's degrees of freedom: unlike the difference it carries the luck of
                 the images.
    Best         the highest mean among the networks with the most successful folds: one lucky
                 fold of a network that failed on the others wins nothing.

    With one fold, or one network, no difference has an interval and nothing is told apart. Without
    any residual (a deterministic evaluator) every true difference counts.

    Sources: Tukey 1953 (honestly significant difference), Kramer 1956; Nadeau & Bengio, Machine
    Learning 52, 2003, for folds, whose training sets overlap: the variance of a mean over folds is
    s²·(1/n + n_test/n_train), not s²/n; Satterthwaite 1946.
    """
    folds = max((len(row) for row in accuracies.values()), default=0)
    table = np.array([padded(row, folds) for row in accuracies.values()], dtype=float).reshape(len(accuracies), folds)
    counts = np.isfinite(table).sum(axis=1)
    ids = list(accuracies)
    alive = np.flatnonzero(counts)
    failed = tuple(Standing(ids[i], 0, None) for i in np.flatnonzero(counts == 0))
    overlap = overlap_ratio(test_fraction)
    if not len(alive):
        return Comparison(None, failed, folds, confidence, overlap)
    fit = two_way(table[alive])
    complete = np.flatnonzero(counts[alive] == counts.max())
    best = int(complete[np.argmax(fit.means[complete])])
    deviation = math.sqrt(fit.variance) if fit.degrees else None
    critical = _studentized_range(confidence, len(alive), fit.degrees) if fit.degrees and len(alive) > 1 else None
    standings = []
    for i in range(len(alive)):
        difference = float(fit.means[i] - fit.means[best])
        bounds = _bounds(fit, i, best, critical, overlap)
        tied = i == best or bounds is None or bounds.low - _SAME <= 0.0 <= bounds.high + _SAME
        standings.append(Standing(ids[alive[i]], int(counts[alive[i]]), float(fit.means[i]),
                                  _interval_of_mean(fit, i, confidence, overlap), difference, bounds, tied))
    order = sorted(range(len(standings)), key=lambda i: (i != best, -fit.means[i]))
    visible = None
    if critical is not None and deviation is not None:
        visible = critical * deviation * math.sqrt(1 / int(counts.max()) + overlap)
    return Comparison(ids[alive[best]], tuple(standings[i] for i in order) + failed, folds, confidence, overlap,
                      deviation, fit.degrees, critical, visible)


def padded(row: Sequence[float | None], length: int) -> list[float]:
    values = [math.nan if v is None or not math.isfinite(v) else float(v) for v in row]
    return values + [math.nan] * (length - len(values))


class Fit(NamedTuple):
    """Least squares of networks + folds. `inverse` turns contrasts into variances, `projector` tells which are estimable."""

    means: Floats
    counts: NDArray[np.int64]
    inverse: Floats
    projector: Floats
    variance: float
    degrees: int
    total: float
    total_degrees: float


def two_way(table: Floats) -> Fit:
    """Fit network + fold effects to a table with holes, by eliminating the folds (Searle, Linear Models, ch. 7)."""
    there = np.isfinite(table)
    table, there = table[:, there.any(axis=0)], there[:, there.any(axis=0)]
    y, cells = np.where(there, table, 0.0), there.astype(float)
    per_fold = cells.sum(axis=0)
    information = np.diag(cells.sum(axis=1)) - (cells / per_fold) @ cells.T
    inverse = np.linalg.pinv(information, rcond=1e-10, hermitian=True)
    projector = information @ inverse
    effects = inverse @ (y - cells * (y.sum(axis=0) / per_fold)).sum(axis=1)
    folds = (y - cells * effects[:, None]).sum(axis=0) / per_fold
    residuals = (y - effects[:, None] - folds) * cells
    squares = float((residuals**2).sum())
    degrees = int(cells.sum()) - round(float(np.trace(projector))) - len(per_fold)
    variance = squares / degrees if degrees > 0 else 0.0
    # Rounding alone must not make two deterministic copies differ.
    variance = 0.0 if variance < _SAME**2 else variance
    total, total_degrees = _total_variance(y, cells, squares, variance, degrees)
    return Fit(effects + folds.mean(), cells.sum(axis=1).astype(np.int64), inverse, projector, variance, max(degrees, 0),
                total, total_degrees)


def _total_variance(y: Floats, cells: Floats, squares: float, variance: float, degrees: int) -> tuple[float, float]:
    """Fold variance + residual variance with Satterthwaite's degrees of freedom (Henderson's method 3)."""
    per_network = cells.sum(axis=1)
    within = float((((y - (y.sum(axis=1) / per_network)[:, None]) * cells) ** 2).sum())
    # trace(Z'MZ): how often the fold variance is in the fold sum of squares
    share = float(cells.sum() - (cells**2 / per_network[:, None]).sum())
    fold_degrees = int(cells.sum()) - len(per_network) - max(degrees, 0)
    if fold_degrees <= 0 or share <= 0:
        return 0.0, 0.0
    fold_square = max(within - squares, 0.0) / fold_degrees
    weight = fold_degrees / share
    parts = [(weight * fold_square, fold_degrees), ((1 - weight) * variance, degrees)]
    total = sum(part for part, _ in parts)
    spread = sum(part**2 / count for part, count in parts if count > 0)
    return total, (total**2 / spread if spread else float(fold_degrees))


def _bounds(fit: Fit, i: int, best: int, critical: float | None, overlap: float) -> Interval | None:
    """Simultaneous interval of mean_i − mean_best; None where the two share no chain of folds or nothing estimates the noise."""
    if critical is None:
        return None
    contrast = np.zeros(len(fit.means))
    contrast[i] += 1.0
    contrast[best] -= 1.0
    if not np.allclose(fit.projector @ contrast, contrast, atol=1e-6):
        return None
    variance = float(contrast @ fit.inverse @ contrast) + (2 * overlap if i != best else 0.0)
    half = critical / math.sqrt(2) * math.sqrt(fit.variance * max(variance, 0.0))
    difference = float(fit.means[i] - fit.means[best])
    return Interval(difference - half, difference + half)


def _interval_of_mean(fit: Fit, i: int, confidence: float, overlap: float) -> Interval | None:
    if fit.total_degrees <= 0:
        return None
    half = _student(confidence, round(fit.total_degrees, 6)) * math.sqrt(fit.total * (1 / int(fit.counts[i]) + overlap))
    return _cut(float(fit.means[i]), half)


# ------------------------------------------------------------------ scaling grids


def nominal_growth(coefficients: Sequence[float]) -> float:
    """α·β²·γ², by which the paper takes the cost to grow (arXiv 1905.11946v5, equation 3).

    >>> round(nominal_growth((1.2, 1.1, 1.15)), 4)
    1.9203
    """
    alpha, beta, gamma = coefficients
    return alpha * beta**2 * gamma**2


def fits_nominal(triples: Sequence[Sequence[float]], tolerance: float = 0.1) -> bool:
    """Whether some triple of a network satisfies the paper's constraint |α·β²·γ² − 2| ≤ tolerance."""
    return any(abs(nominal_growth(triple) - 2.0) <= tolerance + _SAME for triple in triples)


def fits_realised(cost_ratio: float, phi: float = 1.0, tolerance: float = 0.05) -> bool:
    """Whether the network as built costs 2^phi times its base, within a relative tolerance."""
    return bool(abs(cost_ratio / 2.0**phi - 1.0) <= tolerance + _SAME)


# ------------------------------------------------------------------ rank correlation


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Kendall's τ-b of n pairs with its bootstrap interval (None: fewer than 3 pairs, or all equal)."""

    tau: float
    interval: Interval | None
    n: int


def kendall_tau(x: Sequence[float], y: Sequence[float], *, confidence: float = 0.95, resamples: int = 1000,
                seed: int = 0) -> RankCorrelation:
    """Kendall's τ-b, ties counted as such, with a percentile bootstrap interval over the pairs.

    τ is NaN where either side is constant. Memory grows with n²; 4,000 pairs take about 200 MB.
    """
    if len(x) != len(y):
        raise ValueError(f"kendall_tau needs pairs, got {len(x)} and {len(y)} values")
    first, second = _signs(np.asarray(x, dtype=float)), _signs(np.asarray(y, dtype=float))
    n = len(first)
    tau = float(_tau_of(first, second, np.ones((1, n)))[0]) if n else math.nan
    if n < 3 or math.isnan(tau) or resamples < 1:
        return RankCorrelation(tau, None, n)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    draws = _tau_of(first, second, weights)
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return RankCorrelation(tau, Interval(float(low), float(high)), n)


def _signs(values: Floats) -> NDArray[np.float32]:
    return np.sign(values[:, None] - values[None, :]).astype(np.float32)


def _tau_of(first: NDArray[np.float32], second: NDArray[np.float32], weights: NDArray[Any]) -> Floats:
    """τ-b of every row of multiplicities: a pair drawn twice is tied with itself and so counts nowhere."""
    w = weights.astype(np.float32)
    agree = np.einsum("bi,bi->b", w @ (first * second), w, dtype=float)
    untied = [np.einsum("bi,bi->b", w @ np.abs(signs), w, dtype=float) for signs in (first, second)]
    scale = np.sqrt(untied[0] * untied[1])
    taus: Floats = np.divide(agree, scale, out=np.full(len(w), math.nan), where=scale > 0)
    return taus
