"""How far two rankings of a few networks agree, and which networks one of them favours: numbers only.

A proxy audit has six or ten networks, where the usual intervals of Kendall's τ fail: a bootstrap or
jackknife of a perfect ranking is the point 1, whatever n, and a normal approximation leaves [-1, 1].
Here the interval is an exact test turned round: it holds every τ under which a sample of this size
would not be surprising, up and down. For that the test needs a model of the pairs; it takes the
Gaussian copula, which any monotone change of either side leaves as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalesearch.analysis import Interval, RankCorrelation, kendall_tau

Floats = NDArray[np.float64]

FEWEST = 4
# Beyond so many pairs of values the normal approximation is as good and needs no simulation.
MOST_SIMULATED = 40
_SIMULATED_NUMBERS = 1_500_000
# A factor that varies by less than this ratio over the networks says nothing about a direction.
LEAST_SPREAD = 1.2

# What the proxy favours when it underrates much of a factor, and when it overrates it.
FAVOURED = {"depth": ("shallow", "deep"), "width": ("narrow", "wide"), "resolution": ("low-resolution", "high-resolution"),
            "kernel": ("small-kernel", "large-kernel"), "cost": ("cheap", "dear")}


# ------------------------------------------------------------------ Kendall's τ of a few


def rank_agreement(first: Sequence[float | None], second: Sequence[float | None], confidence: float = 0.95) -> RankCorrelation:
    """Kendall's τ-b of the pairs that have both values, with an interval that is honest for few of them.

    The interval is None for fewer than 4 pairs or where τ is not defined (a side is constant: NaN).
    It is the set of τ that a two-sided exact test at 1 − `confidence` does not reject, its null
    distribution simulated under the Gaussian copula, τ = 2/π·asin ρ. Above 40 pairs Fisher's z with
    variance 0.437/(n − 4) (Fieller, Hartley & Pearson, Biometrika 44, 1957).

    Coverage of 95 % intervals for n = 5, 6, 8 and 12 at τ = 0.1, 0.4, 0.6 and 0.8, of 2,000 samples each:
    95.0 to 99.2 % under the Gaussian copula, 93.2 to 99.2 % under Student's with 3 degrees of freedom
    and Clayton's. Of percentile bootstraps (400 samples) 84.5 and 63.5 % at n = 5 with τ = 0.6 and 0.8.

    >>> [round(end, 1) for end in rank_agreement(range(8), range(8)).interval]
    [0.7, 1.0]
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    tau = kendall_tau([a for a, _ in pairs], [b for _, b in pairs], resamples=0).tau
    if len(pairs) < FEWEST or math.isnan(tau):
        return RankCorrelation(tau, None, len(pairs))
    return RankCorrelation(tau, tau_interval(tau, len(pairs), confidence), len(pairs))


def tau_interval(tau: float, n: int, confidence: float = 0.95) -> Interval:
    """The interval of `rank_agreement` around an observed τ of n ≥ 4 pairs."""
    tail = (1 - confidence) / 2
    if n > MOST_SIMULATED:
        return _fieller(tau, n, confidence)
    return Interval(*_inverted(round((tau + 1) / 2 * (n * (n - 1) // 2), 6), n, tail))


@functools.lru_cache(maxsize=256)
def _inverted(concordant: float, n: int, tail: float) -> tuple[float, float]:
    """Both ends, for a number of concordant pairs (not whole where values tie).

    Two points of a sample agree in order when (e_i − e_j)/(x_i − x_j) exceeds −ρ/√(1−ρ²), for
    y = ρ·x + √(1−ρ²)·e. So a sample has k concordant pairs or more exactly when the k-th largest of
    these ratios does, and a quantile of that ratio over samples is the ρ at which the tail has its mass.
    """
    pairs, ratios = n * (n - 1) // 2, _sorted_ratios(n)
    at_least, at_most = math.ceil(concordant - 1e-6), math.floor(concordant + 1e-6)
    low, high = -1.0, 1.0
    if at_least > 0:
        low = _tau_at(-float(np.quantile(ratios[:, pairs - at_least], 1 - tail)))
    if at_most < pairs:
        high = _tau_at(-float(np.quantile(ratios[:, pairs - at_most - 1], tail)))
    return low, high


@functools.lru_cache(maxsize=2)
def _sorted_ratios(n: int) -> Floats:
    """(samples, pairs): slopes of e over x between the points of standard normal samples, ascending."""
    first, second = np.triu_indices(n, 1)
    x, e = np.random.default_rng(n).standard_normal((2, min(20_000, _SIMULATED_NUMBERS // len(first)), n))
    return np.sort((e[:, first] - e[:, second]) / (x[:, first] - x[:, second]), axis=1)


def _tau_at(slope: float) -> float:
    """τ of the Gaussian copula with ρ/√(1−ρ²) = slope."""
    return 2 / math.pi * math.atan(slope)


def _fieller(tau: float, n: int, confidence: float) -> Interval:
    from scipy.stats import norm

    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt(0.437 / (n - 4))
    centre = math.atanh(min(max(tau, -1 + 1e-9), 1 - 1e-9))
    return Interval(math.tanh(centre - half), math.tanh(centre + half))


# ------------------------------------------------------------------ noise


def seed_deviation(accuracies: Sequence[Sequence[float | None]]) -> float | None:
    """Standard deviation of one network's accuracy over seeds, pooled over networks; None without any two seeds."""
    groups = [np.array([v for v in row if v is not None], dtype=float) for row in accuracies]
    degrees = sum(len(group) - 1 for group in groups if len(group))
    if degrees < 1:
        return None
    return math.sqrt(sum(float(((group - group.mean()) ** 2).sum()) for group in groups if len(group)) / degrees)


def noise_ceiling(proxy: Sequence[Sequence[float | None]], long: Sequence[Sequence[float | None]], draws: int = 2000,
                  seed: int = 0) -> float | None:
    """The mean τ that a proxy of the right order throughout would show, since seeds blur both sides.

    `proxy[i]` and `long[i]` are the accuracies of network i by seed. Each side is simulated as true
    values plus the noise of a mean over its seeds. The true values are in the measured order of the
    long side, with the variance that is left of each side's means when the noise's is taken off.
    None where no network has two seeds on both sides, or fewer than 4 networks are left.
    """
    kept = [(p, q) for p, q in zip(proxy, long, strict=True) if _mean(p) is not None and _mean(q) is not None]
    noise = [seed_deviation([pair[side] for pair in kept]) for side in (0, 1)]
    if len(kept) < FEWEST or None in noise:
        return None
    rng, order = np.random.default_rng(seed), np.argsort(np.argsort(np.array([_mean(q) for _, q in kept], dtype=float)))
    sides = []
    for side, deviation in enumerate(noise):
        means = np.sort(np.array([_mean(pair[side]) for pair in kept], dtype=float))
        runs = np.array([sum(v is not None for v in pair[side]) for pair in kept])
        error = (deviation or 0.0) / np.sqrt(runs)
        left = max(float(means.var(ddof=1)) - float((error**2).mean()), 0.0)
        spread = math.sqrt(left / means.var(ddof=1)) if means.var() > 0 else 0.0
        truth = (means.mean() + spread * (means - means.mean()))[order]
        sides.append(truth + error * rng.standard_normal((draws, len(kept))))
    first, second = np.triu_indices(len(kept), 1)
    agree = np.sign(sides[0][:, first] - sides[0][:, second]) * np.sign(sides[1][:, first] - sides[1][:, second])
    return float(agree.mean())


def _mean(values: Sequence[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None


# ------------------------------------------------------------------ direction


@dataclass(frozen=True, slots=True)
class Bias:
    """How a proxy's ranking leans with one factor of a network.

    slope      of (standardised rank by the long schedule − by the proxy) over log₂ of the factor:
               above 0 the proxy underrates networks that have much of it
    interval   simultaneous over the factors that were looked at; None: the factor hardly varies, or too few networks
    favours    "wide", "narrow", … where the interval excludes 0; None: it cannot be told
    """

    factor: str
    slope: float | None
    interval: Interval | None
    favours: str | None

    def __str__(self) -> str:
        if self.favours is None:
            return f"{self.factor}: cannot tell"
        return f"the proxy favours {self.favours} networks"


def bias_direction(proxy: Sequence[float | None], long: Sequence[float | None], factors: Mapping[str, Sequence[float]],
                   confidence: float = 0.95) -> tuple[Bias, ...]:
    """For each factor (depth, width, resolution, kernel, cost; values above 0) whether the proxy leans with it.

    One straight line a factor, since a handful of networks cannot hold several at once: what is said
    is whether networks with more of the factor gain ranks from proxy to long schedule, not by which
    of several factors that go together. Ranks, because a network that has learned nothing yet must
    not outweigh all others. Student's intervals, their confidence divided among the factors (Bonferroni).
    """
    rows = [i for i, (p, q) in enumerate(zip(proxy, long, strict=True)) if p is not None and q is not None]
    if len(rows) < FEWEST:
        return tuple(Bias(name, None, None, None) for name in factors)
    difference = _standard_ranks([long[i] for i in rows]) - _standard_ranks([proxy[i] for i in rows])
    columns = {name: np.log2(np.array([values[i] for i in rows], dtype=float)) for name, values in factors.items()}
    varied = [name for name, column in columns.items() if np.ptp(column) >= math.log2(LEAST_SPREAD)]
    return tuple(_bias(name, column, difference, 1 - (1 - confidence) / len(varied)) if name in varied
                 else Bias(name, None, None, None) for name, column in columns.items())


def _bias(name: str, column: Floats, difference: Floats, confidence: float) -> Bias:
    slope, interval = line_slope(column, difference, confidence)
    assert interval is not None  # at least 4 networks
    less, more = FAVOURED.get(name, (f"low-{name}", f"high-{name}"))
    favours = less if interval.low > 0 else more if interval.high < 0 else None
    return Bias(name, slope, interval, favours)


def line_slope(x: Floats, y: Floats, confidence: float = 0.95, blocks: Sequence[object] | None = None) -> tuple[float, Interval | None]:
    """Least-squares slope of y over x with Student's interval (None: no degrees of freedom are left).

    `blocks`, one label an observation, have each a constant of their own, which takes no part in the slope.
    """
    from scipy.stats import t

    labels = np.unique(np.asarray(["" if blocks is None else str(b) for b in (blocks or [None] * len(x))]), return_inverse=True)[1]
    counts = np.bincount(labels)
    own = x - (np.bincount(labels, x) / counts)[labels]
    rest = y - (np.bincount(labels, y) / counts)[labels]
    squares = float(own @ own)
    if squares == 0:
        raise ValueError("a slope needs two different x within a block")
    slope = float(own @ rest) / squares
    degrees = len(x) - len(counts) - 1
    if degrees < 1:
        return slope, None
    residual = float(((rest - slope * own) ** 2).sum())
    half = float(t.ppf((1 + confidence) / 2, degrees)) * math.sqrt(residual / degrees / squares)
    return slope, Interval(slope - half, slope + half)


def _standard_ranks(values: Sequence[float | None]) -> Floats:
    """Ranks, ties sharing theirs, to mean 0 and deviation 1; all 0 where nothing differs."""
    from scipy.stats import rankdata

    ranks = np.asarray(rankdata(values), dtype=float)
    deviation = float(ranks.std(ddof=1))
    centred: Floats = ranks - ranks.mean()
    return centred / deviation if deviation > 0 else centred
