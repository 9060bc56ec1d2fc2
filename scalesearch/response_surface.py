"""Accuracy as a smooth function of where the cost was put: depth, width or resolution.

At constant cost a scaled network is a point in a triangle: the shares of the growth (in doublings)
that its layers, its channels and its pixels took. A smooth surface over the triangle borrows strength
from all networks, so its optimum is known better than any one network's standing; and being an
optimum of an estimate it is a region. On the border (nothing to depth, say) it is an answer like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scalesearch.analysis import Fit, Floats, overlap_ratio, padded, two_way
from scalesearch.architecture import Architecture
from scalesearch.config import from_mapping
from scalesearch.cost import cost_of
from scalesearch.surface_posterior import Draws, along, regressors, sample, shape_columns, slope_prior
from scalesearch.triangle import SHAPE, distance, kernel, lattice, nearest, predicted, scheffe, scheffe_of, winners_of

Verdict = Literal["held", "moved", "cannot be told"]
Bounds = tuple[float, float]

# The optimum is looked for at shares of whole fiftieths; the region is told in cells of a twentieth.
FINE, COARSE = 50, 20
SMOOTH = 0.05
# An optimum farther than this (in shares) from every network is extrapolated.
NEAR = 0.2
# Optima whose shares differ by less than this at two φ are called the same.
HELD = 0.2
FEWEST = 4


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of the cost growth; they add up to 1."""

    depth: float
    width: float
    resolution: float

    def coefficients(self, growth: float = 1.0) -> tuple[float, float, float]:
        """(α, β, γ) by the nominal relation α·β²·γ² = 2^growth: α = 2^(s_depth·growth), β = 2^(s_width·growth/2), γ likewise.

        >>> [round(c, 3) for c in Shares(0.5, 0.25, 0.25).coefficients()]
        [1.414, 1.091, 1.091]
        """
        return 2.0 ** (self.depth * growth), 2.0 ** (self.width * growth / 2), 2.0 ** (self.resolution * growth / 2)


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Doublings of the base's multiply-adds: by the network's layers alone, its channels alone, its pixels alone, and in all."""

    depth: float
    width: float
    resolution: float
    cost: float

    @property
    def shares(self) -> Shares | None:
        """Where the growth went; None for the base itself, which did not grow.

        >>> Coordinates(0.5, 0.25, 0.25, 1.01).shares
        Shares(depth=0.5, width=0.25, resolution=0.25)
        """
        growth = self.depth + self.width + self.resolution
        if abs(growth) < 1e-6:
            return None
        return Shares(self.depth / growth, self.width / growth, self.resolution / growth)


def coordinates(base: Architecture, network: Architecture) -> Coordinates:
    """Where a network scaled from `base` (the same stages but for layers and channels) put its cost.

    Realised costs: what rounding made of the layers, channels and pixels, one of them at a time. The
    three add up to the whole nearly, not exactly: stem, head and classifier do not repeat.
    """
    layers = tuple(replace(mine, layers=theirs.layers) for mine, theirs in zip(base.stages, network.stages, strict=True))
    channels = tuple(replace(mine, channels=theirs.channels) for mine, theirs in zip(base.stages, network.stages, strict=True))
    wider = base.replace(stem=replace(base.stem, channels=network.stem.channels), stages=channels,
                         head=replace(base.head, channels=network.head.channels))
    alone = (base.replace(stages=layers), wider, base.replace(resolution=network.resolution), network)
    whole = cost_of(base).macs
    depth, width, resolution, cost = (math.log2(cost_of(changed).macs / whole) for changed in alone)
    return Coordinates(depth, width, resolution, cost)


@dataclass(frozen=True, slots=True)
class SurfacePoint:
    """A network: accuracies (fractions) by seed, the same seeds for all; None is a training that failed or was not run.

    `phi` sets its target cost, 2^phi of the base's. The base itself (phi 0, no growth) may be among
    the points: it says nothing about shares, but about what a doubling of the cost brings.
    """

    id: str
    phi: float
    coordinates: Coordinates
    accuracies: tuple[float | None, ...]

    @property
    def remainder(self) -> float:
        """Doublings by which the network costs more than its target."""
        return self.coordinates.cost - self.phi


@dataclass(frozen=True, slots=True)
class Cell:
    """A place in the triangle.

    probability   of the optimum's lying here
    mean          accuracy there at exactly the target cost; `deviation` is its standard deviation
    inside        in the region: the likeliest cells, averaged over their neighbours, that together hold the optimum with
                  the surface's confidence
    """

    depth: float
    width: float
    resolution: float
    probability: float
    mean: float
    deviation: float
    inside: bool


@dataclass(frozen=True, slots=True)
class Optimum:
    """Of the surface at one φ.

    shares        where the mean surface is highest; depth, width, resolution: an interval of each share
    coefficients  (α, β, γ) of these shares by the *nominal* relation α·β²·γ² = 2; alpha, beta, gamma: what
                  the intervals' ends stand for. What rounding makes of them on a base is another matter
    mean          accuracy at the optimum and its standard deviation; the luck of the images, the same
                  everywhere, takes no part
    measured      whether a network was trained near it; False: it is extrapolated
    scheffe       mean and covariance of the surface's numbers b in
                  b1·d + b2·w + b3·r + b4·d·w + b5·d·r + b6·w·r, with d, w, r the shares
    """

    phi: float
    shares: Shares
    depth: Bounds
    width: Bounds
    resolution: Bounds
    coefficients: tuple[float, float, float]
    alpha: Bounds
    beta: Bounds
    gamma: Bounds
    mean: float
    deviation: float
    measured: bool
    cells: tuple[Cell, ...]
    scheffe: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    def at(self, shares: Shares) -> tuple[float, float]:
        """(mean, standard deviation) of the accuracy at these shares and exactly the target cost."""
        mean, deviation = predicted(np.array([_triple(shares)]), np.array(self.scheffe), np.array(self.covariance))
        return float(mean[0]), float(deviation[0])


@dataclass(frozen=True, slots=True)
class Moved:
    """The optimum's shares at the last φ minus those at the first; the three intervals hold together.

    loss      accuracy given up at the last φ by keeping the first one's optimum, and its upper bound
    verdict   moved where an interval excludes 0, held where all lie within ± HELD
    """

    first: float
    last: float
    difference: tuple[float, float, float]
    depth: Bounds
    width: Bounds
    resolution: Bounds
    loss: float
    loss_at_most: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Surface:
    """The fitted surface; `fit_surface` documents the method. Accuracies are fractions; JSON by `to_mapping`, back by `from_mapping`.

    optima       one for each φ, lowest first
    flat         the measurements cannot tell the surface from a constant; then nothing is excluded: each
                 share's interval is 0 to 1 and every cell is in the region
    p_value      how often a constant surface looks at least so curved
    within       with the confidence, no share near the networks trained is more than this below the best one
    slope        accuracy per doubling of the cost at constant shares, and its interval
    deviation    of one training (network and seed effects removed); None: nothing was replicated
    scatter      of a network around the surface beyond the noise of its trainings; with nothing replicated, all of it
    corrected    each network's mean at exactly the target cost; `correction` is what was added
    moved        None where all points have one φ
    """

    optima: tuple[Optimum, ...]
    flat: bool
    p_value: float
    within: float
    slope: float
    slope_interval: Bounds
    deviation: float | None
    scatter: float
    corrected: Mapping[str, float]
    correction: Mapping[str, float]
    networks: int
    trainings: int
    confidence: float
    moved: Moved | None = None

    @property
    def optimum(self) -> Optimum:
        """At the lowest φ."""
        return self.optima[0]

    def at(self, shares: Shares, phi: float | None = None) -> tuple[float, float]:
        """(mean, standard deviation) of the accuracy at a share and exactly the target cost of a φ (None: the lowest)."""
        return next(optimum for optimum in self.optima if phi is None or optimum.phi == phi).at(shares)

    @property
    def verdict(self) -> str:
        """One sentence in plain words: where the optimum is, or that it cannot be told."""
        if self.flat:
            return (f"flat: the {self.networks} networks cannot tell the surface from a constant; any share near "
                    f"them is within {100 * self.within:.2f} points of the best ({100 * self.confidence:.4g} %)")
        best = self.optimum
        place = ", ".join(f"{name} {100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}]" for name, share, (low, high) in zip(
            ("depth", "width", "resolution"), _triple(best.shares), (best.depth, best.width, best.resolution), strict=True))
        far = "" if best.measured else "; no network was trained near it: extrapolated"
        return f"the surface's optimum gives {place} of the growth{far}"

    @property
    def method(self) -> str:
        """One sentence for the page: what was computed from how much."""
        noise = "nothing was replicated" if self.deviation is None else f"residual deviation {100 * self.deviation:.2f} points"
        return (f"quadratic surface over the shares of the cost growth, Bayesian with weak priors, from {self.networks} networks and "
                f"{self.trainings} trainings ({noise}; networks scatter by {100 * self.scatter:.2f} points around the surface); "
                f"intervals hold {100 * self.confidence:.4g} % of the posterior")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Surface:
        """From `config.to_mapping(surface)` as read back from JSON."""
        return from_mapping(cls, mapping, "surface")


def fit_surface(points: Sequence[SurfacePoint], confidence: float = 0.95, test_fraction: float | None = None) -> Surface | None:
    """The surface through networks of about equal cost; None for fewer than four places of the triangle, or where
    the networks share no seeds.

    Model       accuracy = quadratic in the shares (Scheffé's mixture polynomial, J. Royal Statistical Society B 20, 1958)
                + slope · (log2 cost ratio − φ) + effect of the seed + scatter of the network + noise.
                A seed that is hard for all takes no part. With several φ each has its own level, and the
                quadratic a part that grows with φ.
    Priors      weak, symmetric in the three shares, without a preference for a balance; `surface_posterior` has them.
    Slope       around what the levels say: of the base, where it is among the points, and of the φ. Half of
                that is its prior deviation, because accuracy grows ever slower with cost. Without any:
                0 ± 5 points per doubling.
    Flat        where a constant surface with scatter looks as curved as this one (Bayes factor) more often
                than 1 - `confidence`.
    Optimum     of every posterior draw: the region is what the surfaces that fit say together.
    Folds       `test_fraction` is 1/K where seeds are K folds, None for independent seeds; n_test/n_train of
                the noise is added to each network (Nadeau & Bengio, Machine Learning 52, 2003), as
                `analysis.compare_with_best` does.
    """
    used = [p for p in points if p.coordinates.shares is not None and _trained(p)]
    shares = np.array([_triple(p.coordinates.shares) for p in used]).reshape(-1, 3)
    if len(np.unique(shares.round(6), axis=0)) < FEWEST:
        return None
    phis, table = sorted({p.phi for p in used}), _table(used)
    fit, overlap = two_way(table), overlap_ratio(test_fraction)
    phi_of, remainder = np.array([p.phi for p in used]), np.array([p.remainder for p in used])
    features, others = regressors(shares, phi_of, remainder, _slope(points, fit.variance))
    draws = sample(fit, features, shape_columns(phi_of), others, overlap)
    if draws is None:
        return None
    flat, slopes = draws.p_value > 1 - confidence, draws.coefficients[:, -1]
    surfaces = [_drawn(draws, features, fit, overlap, phi_of, phi) for phi in phis]
    optima = tuple(_optimum(phi, drawn, shares[phi_of == phi], flat, confidence) for phi, drawn in zip(phis, surfaces, strict=True))
    correction = {p.id: -float(slopes.mean()) * p.remainder for p in used}
    return Surface(
        optima, flat, draws.p_value, _within(surfaces, shares, confidence), float(slopes.mean()), _bounds(slopes, confidence),
        math.sqrt(fit.variance) if fit.degrees else None, float(draws.scatter.mean()),
        {p.id: float(mean) + correction[p.id] for p, mean in zip(used, fit.means, strict=True)}, correction, len(used),
        int(np.isfinite(table).sum()), confidence, _moved(optima, surfaces, flat, confidence) if len(phis) > 1 else None)


# ------------------------------------------------------------------ what is regressed on what


def _trained(point: SurfacePoint) -> bool:
    return any(a is not None and math.isfinite(a) for a in point.accuracies)


def _triple(shares: Shares | None) -> tuple[float, float, float]:
    assert shares is not None
    return shares.depth, shares.width, shares.resolution


def _table(points: Sequence[SurfacePoint]) -> Floats:
    width = max(len(p.accuracies) for p in points)
    return np.array([padded(p.accuracies, width) for p in points], dtype=float)


def _slope(points: Sequence[SurfacePoint], variance: float) -> tuple[float, float]:
    """Prior of the slope: by the networks and the base, each φ a level."""
    trained = [p for p in points if _trained(p)]
    means = two_way(_table(trained)).means
    groups: dict[tuple[bool, float], list[int]] = {}
    for place, p in enumerate(trained):
        groups.setdefault((p.coordinates.shares is None, p.phi), []).append(place)
    return slope_prior(np.array([p.coordinates.cost for p in trained]), means, list(groups.values()), math.sqrt(variance))


# ------------------------------------------------------------------ from draws to answers


def _drawn(draws: Draws, features: Floats, fit: Fit, overlap: float, phi_of: Floats, phi: float) -> Floats:
    """Scheffé's six numbers (draws × 6) of the surface at one φ and exactly its target cost."""
    shape, rows = draws.coefficients[:, :SHAPE], phi_of == phi
    columns = shape_columns(phi_of)
    if columns > SHAPE:
        shape = shape + float(along(np.array(phi), phi_of)) * draws.coefficients[:, SHAPE:columns]
    # The level is that of this φ's networks, less what their shares and remainders put them above it.
    middle = features[rows].mean(axis=0)
    middle[columns:-1] = 0.0
    variance = draws.noise**2 * (1 / fit.counts[rows].sum() + overlap / rows.sum()) + draws.scatter**2 / rows.sum()
    luck = np.sqrt(variance) * np.random.default_rng(0).standard_normal(len(shape))
    return scheffe_of(fit.means[rows].mean() - draws.coefficients @ middle + luck, shape)


def _optimum(phi: float, drawn: Floats, networks: Floats, flat: bool, confidence: float) -> Optimum:
    places = lattice(FINE)
    mean, covariance = drawn.mean(axis=0), np.cov(drawn.T)
    best, winners = places[int((scheffe(places) @ mean).argmax())], winners_of(drawn, FINE)
    depth, width, resolution = ((0.0, 1.0) if flat else _bounds(places[winners, axis], confidence, float(best[axis])) for axis in range(3))
    shares = Shares(*map(float, best))
    value, deviation = predicted(best[None], mean, covariance)
    return Optimum(phi, shares, depth, width, resolution, shares.coefficients(), _power(depth, 1), _power(width, 2),
                   _power(resolution, 2), float(value[0]), float(deviation[0]), bool(distance(best[None], networks)[0] <= NEAR),
                   _cells(winners, mean, covariance, flat, confidence), tuple(map(float, mean)),
                   tuple(tuple(map(float, row)) for row in covariance))


def _cells(winners: NDArray[np.int64], mean: Floats, covariance: Floats, flat: bool, confidence: float) -> tuple[Cell, ...]:
    """How many draws have their optimum in each coarse cell; the fullest cells make the region."""
    places = lattice(COARSE)
    probability = np.bincount(nearest(FINE, COARSE)[winners], minlength=len(places)) / len(winners)
    # averaged over neighbours, so that the region's edge is that of the surfaces and not of the draws
    order = np.argsort(-(kernel(COARSE, SMOOTH) @ probability), kind="stable")
    before = np.cumsum(probability[order]) - probability[order]
    inside = np.full(len(places), flat)
    inside[order[before < confidence]] = True
    rows = zip(places.tolist(), probability, *predicted(places, mean, covariance), inside, strict=True)
    return tuple(Cell(d, w, r, float(p), round(float(m), 6), round(float(s), 6), bool(i)) for (d, w, r), p, m, s, i in rows)


def _within(surfaces: Sequence[Floats], networks: Floats, confidence: float) -> float:
    """Bound of the surfaces' range over the places near networks."""
    places = lattice(COARSE)
    near = distance(places, networks) <= NEAR
    values = scheffe(places[near] if near.any() else places)
    return max(float(np.quantile(np.ptp(drawn @ values.T, axis=1), confidence)) for drawn in surfaces)


def _bounds(values: Floats, confidence: float, including: float | None = None) -> Bounds:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    ends = [float(low), float(high), *([] if including is None else [including])]
    return min(ends), max(ends)


def _power(share: Bounds, exponent: int) -> Bounds:
    return 2.0 ** (share[0] / exponent), 2.0 ** (share[1] / exponent)


def _moved(optima: Sequence[Optimum], surfaces: Sequence[Floats], flat: bool, confidence: float) -> Moved:
    places = lattice(FINE)
    change = places[winners_of(surfaces[-1], FINE)] - places[winners_of(surfaces[0], FINE)]
    # three intervals that hold together (Bonferroni)
    each = 1 - (1 - confidence) / 3
    depth, width, resolution = (_bounds(change[:, axis], each) for axis in range(3))
    kept = scheffe(np.array([_triple(optima[0].shares)]))[0]
    lost = (surfaces[-1] @ scheffe(places).T).max(axis=1) - surfaces[-1] @ kept
    middle = tuple(b - a for a, b in zip(_triple(optima[0].shares), _triple(optima[-1].shares), strict=True))
    ends = [end for bounds in (depth, width, resolution) for end in bounds]
    verdict: Verdict = "cannot be told"
    if not flat and any(low > 0 or high < 0 for low, high in (depth, width, resolution)):
        verdict = "moved"
    elif not flat and max(map(abs, ends)) <= HELD:
        verdict = "held"
    mean_loss = optima[-1].mean - float(kept @ np.array(optima[-1].scheffe))
    return Moved(optima[0].phi, optima[-1].phi, (middle[0], middle[1], middle[2]), depth, width, resolution, mean_loss,
                 float(np.quantile(lost, confidence)), verdict)
