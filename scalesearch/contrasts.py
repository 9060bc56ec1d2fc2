"""Differences of networks to one of them, from accuracies on shared seeds or folds, with simultaneous intervals.

Two questions, two critical values. Against a control that was named before anything was measured (the
stock baseline) only the differences to it are asked for: Dunnett's. Against a network that was picked
from the same numbers (the winner) any pair might have been the one: Tukey's studentized range. Both
rest on the same least squares of networks + seeds as `compare_with_best`: what a seed does to all
networks takes no part, and all networks together tell the noise, which three seeds of one cannot.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scalesearch.analysis import Fit, Floats, Interval, overlap_ratio, padded, two_way

Standing = Literal["ahead", "tied", "behind", "unknown"]

# Below this a difference of means of fractions is rounding.
_SAME = 1e-12


@dataclass(frozen=True, slots=True)
class Difference:
    """mean(id) − mean(reference), a fraction, with its simultaneous interval; None where it cannot be had.

    standing   of `id` to the reference: tied where the interval holds 0, unknown where there is none
    """

    id: str
    difference: float | None = None
    bounds: Interval | None = None
    standing: Standing = "unknown"


@dataclass(frozen=True, slots=True)
class Contrasts:
    """Every other network against `reference`, in the order given.

    critical    a difference counts beyond critical · its standard error; None: nothing tells the noise
    deviation   residual standard deviation of one accuracy, network and seed effects removed
    degrees     its degrees of freedom
    """

    reference: str
    differences: tuple[Difference, ...]
    confidence: float
    method: str
    critical: float | None = None
    deviation: float | None = None
    degrees: int = 0

    def __getitem__(self, id: str) -> Difference:
        return next(difference for difference in self.differences if difference.id == id)


def compare_with(reference: str, accuracies: Mapping[str, Sequence[float | None]], *, among: Sequence[str] | None = None,
                 picked: bool = False, confidence: float = 0.95, test_fraction: float | None = None) -> Contrasts:
    """The differences of the networks in `among` (None: of all others) to the reference.

    `accuracies[id][j]` is the accuracy of a network at seed j, the same seeds for all; None, NaN or a
    short list is a training that failed. All networks tell the noise, also those not in `among`.
    picked          False: the reference was named beforehand; the intervals of the differences in
                    `among` hold together (Dunnett, JASA 50, 1955), so that the best of them may be
                    picked from the same numbers. True: it was itself picked from these numbers; the
                    intervals of all pairs hold together (Tukey)
    test_fraction   1/K where seeds are K folds: widened as Nadeau & Bengio 2003 do

    scipy.stats.dunnett takes independent samples; here seeds are shared, so its variance would hold
    the luck of the seeds and its degrees of freedom would be too many.
    """
    width = max((len(row) for row in accuracies.values()), default=0)
    table = np.array([padded(row, width) for row in accuracies.values()], dtype=float).reshape(len(accuracies), width)
    alive = [id for id, there in zip(accuracies, np.isfinite(table).any(axis=1), strict=True) if there]
    asked = [id for id in (accuracies if among is None else among) if id != reference]
    nothing = Contrasts(reference, tuple(Difference(id) for id in asked), confidence, "nothing to compare")
    if reference not in alive or not set(asked) & set(alive):
        return nothing
    fit = two_way(table[np.isfinite(table).any(axis=1)])
    rows = {id: _contrast(alive, id, reference) for id in asked if id in alive}
    errors = {id: _error(fit, row, overlap_ratio(test_fraction)) for id, row in rows.items()}
    critical = _critical(fit, [row for id, row in rows.items() if errors[id] is not None], confidence, picked)
    differences = tuple(_difference(id, fit, rows.get(id), errors.get(id), critical) for id in asked)
    return Contrasts(reference, differences, confidence, _method(len(alive), width, picked, critical, fit, confidence), critical,
                     math.sqrt(fit.variance) if fit.degrees else None, fit.degrees)


@functools.lru_cache(maxsize=256)
def dunnett_critical(comparisons: int, degrees: int, confidence: float = 0.95, correlation: float = 0.5) -> float:
    """The two-sided quantile of the largest |t| of so many comparisons with one control.

    `correlation` of two comparisons is ½ where the control has as many observations as the others.

    >>> round(dunnett_critical(5, 20), 2), round(dunnett_critical(1, 20), 2)  # Dunnett 1964, Table 3; Student
    (2.73, 2.09)
    """
    from scipy.optimize import brentq

    if comparisons < 1 or degrees < 1:
        raise ValueError(f"{comparisons} comparisons at {degrees} degrees of freedom: both are at least 1")
    return float(brentq(lambda c: _coverage(c, comparisons, degrees, correlation) - confidence, 0.01, 1e4, xtol=1e-6))


def _coverage(critical: float, comparisons: int, degrees: int, correlation: float) -> float:
    """P(all |t| ≤ critical): over the control's luck z and the estimated deviation u the comparisons are independent."""
    from scipy.special import ndtr

    z, weights, u, shares = _nodes(degrees)
    shift, spread = math.sqrt(correlation) * z[:, None], math.sqrt(1 - correlation)
    inside = ndtr((critical * u - shift) / spread) - ndtr((-critical * u - shift) / spread)
    return float(weights @ inside**comparisons @ shares)


@functools.lru_cache(maxsize=16)
def _nodes(degrees: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Quadrature over a standard normal and over √(χ²/ν), by Gauss-Hermite and by Gauss-Legendre on its quantiles."""
    from scipy.stats import chi2

    z, weights = np.polynomial.hermite_e.hermegauss(80)
    shares, widths = np.polynomial.legendre.leggauss(400)
    return z, weights / weights.sum(), np.sqrt(chi2.ppf((shares + 1) / 2, degrees) / degrees), widths / 2


def _contrast(ids: Sequence[str], id: str, reference: str) -> Floats:
    row = np.zeros(len(ids))
    row[ids.index(id)] += 1.0
    row[ids.index(reference)] -= 1.0
    return row


def _error(fit: Fit, contrast: Floats, overlap: float) -> float | None:
    """Standard error of a difference; None where the two share no chain of seeds or nothing tells the noise."""
    if not fit.degrees or not np.allclose(fit.projector @ contrast, contrast, atol=1e-6):
        return None
    return math.sqrt(fit.variance * (max(float(contrast @ fit.inverse @ contrast), 0.0) + 2 * overlap))


def _critical(fit: Fit, contrasts: Sequence[Floats], confidence: float, picked: bool) -> float | None:
    if not contrasts:
        return None
    if picked:
        from scipy.stats import studentized_range

        return float(studentized_range.ppf(confidence, len(fit.means), fit.degrees)) / math.sqrt(2)
    rows = np.array(contrasts)
    covariance = rows @ fit.inverse @ rows.T
    scale = np.sqrt(np.diag(covariance))
    correlations = (covariance / np.outer(scale, scale))[np.triu_indices(len(rows), 1)]
    # ½ when no cell is missing; else their mean stands for all (Hochberg & Tamhane 1987, ch. 5)
    return dunnett_critical(len(rows), fit.degrees, confidence, round(float(correlations.mean()), 6) if len(rows) > 1 else 0.5)


def _difference(id: str, fit: Fit, contrast: Floats | None, error: float | None, critical: float | None) -> Difference:
    if contrast is None:
        return Difference(id)
    difference = float(contrast @ fit.means)
    if error is None or critical is None:
        return Difference(id, difference)
    low, high = difference - critical * error, difference + critical * error
    return Difference(id, difference, Interval(low, high), "ahead" if low > _SAME else "behind" if high < -_SAME else "tied")


def _method(networks: int, seeds: int, picked: bool, critical: float | None, fit: Fit, confidence: float) -> str:
    """One sentence for the page."""
    size = f"{networks} network{'s' * (networks != 1)} × {seeds} seed{'s' * (seeds != 1)}"
    if critical is None:
        return f"no interval: {size} leave nothing to estimate the noise from"
    name = "Tukey's, all pairs together" if picked else "Dunnett's, against a control named beforehand"
    return (f"{confidence:.0%} intervals that hold together ({name}: {critical:.3f} standard errors) over {size}, the seeds' own effects "
            f"removed; residual deviation {100 * math.sqrt(fit.variance):.2f} points on {fit.degrees} degrees of freedom")
