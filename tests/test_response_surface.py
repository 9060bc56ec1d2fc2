"""The response surface: coordinates by hand, fits against closed forms, and calibration by simulated grids."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from scalesearch.analysis import Floats, two_way
from scalesearch.architecture import load_architecture
from scalesearch.config import to_mapping
from scalesearch.response_surface import Coordinates, Shares, Surface, SurfacePoint, coordinates, fit_surface
from scalesearch.scaling import ScalingRule
from scalesearch.surface_posterior import Others, sample, shape_deviations
from scalesearch.triangle import lattice, scheffe, scheffe_of, shape_features

Truth = Callable[[Floats], Floats]
SLOPE = 0.02


def peak(*centre: float, drop: float = 0.04) -> Truth:
    """`drop` below the top at a distance of 1; (0.6, 0.5, -0.1) puts the top onto an edge."""
    return lambda shares: -drop * ((shares - np.array(centre)) ** 2).sum(axis=1)


def corner(shares: Floats) -> Floats:
    return 0.03 * shares[:, 1]


def constant(shares: Floats) -> Floats:
    return 0.0 * shares[:, 0]


def grid(rng: np.random.Generator, truth: Truth, networks: int = 16, seeds: int = 4, noise: float = 0.007, scatter: float = 0.003,
         phi: float = 1.0) -> list[SurfacePoint]:
    """A grid as trained: random shares in tenths, costs a few per cent off, seeds that are hard for all."""
    places = lattice(10)
    shares = places[rng.choice(len(places), networks, replace=False)]
    remainder = rng.uniform(-0.07, 0.07, networks)
    means = 0.8 + truth(shares) + SLOPE * remainder + rng.normal(0, scatter, networks)
    table = means[:, None] + rng.normal(0, 0.01, seeds) + rng.normal(0, noise, (networks, seeds))
    return [SurfacePoint(f"{phi:g}-{i}", phi, Coordinates(*(phi * place), phi + extra), tuple(row))
            for i, (place, extra, row) in enumerate(zip(shares, remainder, table, strict=True))]


def top(truth: Truth) -> Floats:
    places = lattice(50)
    return np.asarray(places[truth(places).argmax()])


def holds(surface: Surface, place: Floats) -> tuple[bool, bool]:
    """Whether all three shares are in their intervals, and the place in the region."""
    best = surface.optimum
    cell = min(best.cells, key=lambda c: float(((np.array([c.depth, c.width, c.resolution]) - place) ** 2).sum()))
    inside = all(low - 1e-9 <= share <= high + 1e-9 for share, (low, high) in zip(place, (best.depth, best.width, best.resolution),
                                                                                 strict=True))
    return inside, cell.inside


# ------------------------------------------------------------------ coordinates


def test_coordinates_are_doublings_of_realised_cost() -> None:
    """B0 with α = 1.2 gains a layer in every stage: 386M → 570M. Its pixels: 258 against 224 px."""
    base = load_architecture("efficientnet_b0")
    deeper = coordinates(base, ScalingRule(1.2, 1.0, 1.0)(base))
    assert (deeper.width, deeper.resolution) == (0.0, 0.0) and deeper.depth == deeper.cost == pytest.approx(0.562, abs=0.001)
    assert deeper.shares == Shares(1.0, 0.0, 0.0)
    larger = coordinates(base, ScalingRule(1.0, 1.0, 1.15)(base))
    # feature maps of 258 px are 129, 65, 33, 17 and 9 wide, which is more than 258 / 224 of 112, 56, 28, 14 and 7
    assert 2 * math.log2(258 / 224) < larger.resolution == larger.cost < 2 * math.log2(9 / 7)
    compound = coordinates(base, ScalingRule(1.2, 1.1, 1.15)(base))
    assert (compound.depth, compound.resolution) == (deeper.depth, larger.resolution)
    assert compound.cost == pytest.approx(math.log2(2.5728), abs=1e-3)
    assert compound.depth + compound.width + compound.resolution == pytest.approx(compound.cost, abs=0.05)
    assert coordinates(base, base).shares is None


def test_nominal_coefficients() -> None:
    alpha, beta, gamma = Shares(0.2, 0.5, 0.3).coefficients()
    assert alpha * beta**2 * gamma**2 == pytest.approx(2.0) and alpha == pytest.approx(2**0.2)
    assert Shares(0.0, 1.0, 0.0).coefficients(growth=2.0) == (1.0, 2.0, 1.0)


def test_both_forms_of_a_quadratic_are_the_same() -> None:
    """Shape features and Scheffé's polynomial, at places that fixed neither; features have mean 0 and variance 1."""
    rng = np.random.default_rng(0)
    shape, places = rng.normal(size=(3, 5)), rng.dirichlet((1, 1, 1), 50_000)
    six = scheffe_of(np.array([0.1, 0.2, 0.3]), shape)
    assert np.allclose(six @ scheffe(places[:9]).T, shape @ shape_features(places[:9]).T + np.array([[0.1], [0.2], [0.3]]))
    assert np.allclose(shape_features(places).mean(axis=0), 0, atol=0.03)
    assert np.allclose(shape_features(places).std(axis=0), 1, atol=0.03)


def test_features_favour_no_corner() -> None:
    """Prior variance of the surface at a place depends on the place, not on which dimension is which."""
    place = np.array([[0.6, 0.3, 0.1]])
    variances = [float((shape_features(place[:, list(order)]) ** 2 @ shape_deviations() ** 2)[0])
                 for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (1, 0, 2))]
    assert variances == pytest.approx([variances[0]] * 4)


# ------------------------------------------------------------------ the fit


def test_posterior_against_importance_sampling() -> None:
    """Means of the coefficients by weighting draws of the prior with the multivariate t of the data, integrated by brute force."""
    rng = np.random.default_rng(1)
    shares = lattice(3)
    y = 0.8 + 0.02 * shares[:, 0] + rng.normal(0, 0.01, 10)
    features = np.concatenate([shape_features(shares), rng.uniform(-0.1, 0.1, (10, 1))], axis=1)
    draws = sample(two_way(y[:, None]), features, 5, Others(np.zeros(1), np.array([3.0])), 0.0)
    assert draws is not None
    contrast = np.linalg.qr(np.eye(10)[:, :9] - 0.1)[0]
    sizes, weights, means = np.geomspace(0.02, 500, 400), [], []
    for size in sizes:
        prior = np.diag(np.concatenate([size * shape_deviations(), [3.0]])) ** 2
        design = contrast.T @ features
        covariance = design @ prior @ design.T + np.eye(9)
        z = contrast.T @ y
        # Jeffreys' noise: a t density with 9 degrees in the limit of no scale of its own
        log = -0.5 * np.linalg.slogdet(covariance)[1] - 4.5 * math.log(z @ np.linalg.solve(covariance, z))
        weights.append(math.exp(log) * size / (1 + (size / 2) ** 2))
        means.append(prior @ design.T @ np.linalg.solve(covariance, z))
    expected = np.average(means, axis=0, weights=weights)
    error = draws.coefficients.std(axis=0) / math.sqrt(len(draws.coefficients))
    assert np.all(np.abs(draws.coefficients.mean(axis=0) - expected) < 5 * error + 2e-4)


def test_precise_data_give_the_quadratic_back() -> None:
    """The noise is small: optimum, intervals, slope and corrected means are the truth's."""
    truth = peak(0.3, 0.5, 0.2)
    points = grid(np.random.default_rng(0), truth, 24, 3, noise=1e-5, scatter=1e-6)
    surface = fit_surface(points)
    assert surface is not None and not surface.flat and surface.optimum.measured
    best = surface.optimum
    assert (best.shares.depth, best.shares.width, best.shares.resolution) == pytest.approx((0.3, 0.5, 0.2), abs=0.021)
    assert best.depth[1] - best.depth[0] <= 0.041 and best.coefficients == pytest.approx(best.shares.coefficients())
    assert best.alpha == pytest.approx((2 ** best.depth[0], 2 ** best.depth[1]))
    assert best.gamma[1] == pytest.approx(2 ** (best.resolution[1] / 2))
    assert surface.slope == pytest.approx(SLOPE, abs=1e-3)
    for shares in (Shares(1.0, 0.0, 0.0), Shares(0.2, 0.2, 0.6)):
        difference = surface.at(shares)[0] - best.mean
        assert difference == pytest.approx(truth(np.array([[shares.depth, shares.width, shares.resolution]]))[0], abs=2e-4)
    for point in points:
        assert surface.correction[point.id] == pytest.approx(-SLOPE * point.remainder, abs=1e-4)
        mean = sum(a for a in point.accuracies if a is not None) / 3
        assert surface.corrected[point.id] == pytest.approx(mean + surface.correction[point.id])
    assert sum(cell.probability for cell in best.cells) == pytest.approx(1.0) and len(best.cells) == 231
    assert best.at(best.shares) == pytest.approx((best.mean, best.deviation))


def test_json_both_ways() -> None:
    rng = np.random.default_rng(2)
    surface = fit_surface([*grid(rng, peak(0.4, 0.3, 0.3)), *grid(rng, peak(0.4, 0.3, 0.3), phi=2.0)])
    assert surface is not None and surface.moved is not None
    again = Surface.from_mapping(json.loads(json.dumps(to_mapping(surface))))
    assert again == surface and again.at(Shares(0.2, 0.2, 0.6), 2.0) == surface.at(Shares(0.2, 0.2, 0.6), 2.0)
    assert again.optimum.cells[7] == surface.optimum.cells[7] and fit_surface([]) is None


def test_the_same_points_give_the_same_surface() -> None:
    points = grid(np.random.default_rng(3), corner)
    assert fit_surface(points) == fit_surface(points)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_networks_give_a_wide_region_and_no_crash(seeds: int) -> None:
    """Eight networks by corners, as the smallest grids have them: nothing is excluded without reason."""
    rng = np.random.default_rng(4)
    points = grid(rng, constant, 8, seeds, scatter=0.0)
    surface = fit_surface(points, test_fraction=0.5)
    assert surface is not None and surface.flat and surface.optimum.depth == (0.0, 1.0)
    assert all(cell.inside for cell in surface.optimum.cells) and "flat" in surface.verdict and "within" in surface.verdict
    assert (surface.deviation is None) == (seeds == 1) and surface.within > 0.005


def test_degenerate_grids() -> None:
    """Three networks, failed trainings, equal accuracies, networks without a common seed."""
    rng = np.random.default_rng(5)
    points = grid(rng, constant, 12, 3)
    assert fit_surface(points[:3]) is None
    failed = [replace(p, accuracies=(None, *p.accuracies[1:])) if i % 3 == 0 else p for i, p in enumerate(points)]
    surface = fit_surface([*failed, replace(points[0], id="dead", accuracies=(None, float("nan")))])
    assert surface is not None and "dead" not in surface.corrected and surface.trainings == 32 and surface.networks == 12
    equal = fit_surface([replace(p, accuracies=(0.5, 0.5)) for p in points])
    assert equal is not None and equal.flat and equal.within < 1e-6
    apart = [replace(p, accuracies=tuple(0.5 if k == i else None for k in range(12))) for i, p in enumerate(points)]
    assert fit_surface(apart) is None


def test_a_deterministic_evaluator_has_no_noise_but_scatter() -> None:
    truth = peak(0.2, 0.6, 0.2)
    points = [replace(p, accuracies=(p.accuracies[0],) * 3) for p in grid(np.random.default_rng(6), truth, 20, 1, 0.0, 1e-3)]
    surface = fit_surface(points)
    assert surface is not None and not surface.flat and surface.deviation == 0.0
    assert surface.scatter == pytest.approx(1e-3, rel=0.5) and holds(surface, top(truth))[0]


def test_the_base_tells_the_slope() -> None:
    """At 1× it is 5 points below the networks at 2×; the remainders alone, all 0, say nothing."""
    points = [replace(p, coordinates=replace(p.coordinates, cost=1.0)) for p in grid(np.random.default_rng(7), constant)]
    level = np.mean([a for p in points for a in p.accuracies])
    base = SurfacePoint("base", 0.0, Coordinates(0.0, 0.0, 0.0, 0.0), (level - 0.05,) * 4)
    alone, both = fit_surface(points), fit_surface([*points, base])
    assert alone is not None and both is not None
    assert alone.slope == pytest.approx(0.0, abs=0.005) and alone.slope_interval[0] < -0.08 and both.slope == pytest.approx(0.05, abs=0.003)
    assert -0.005 < both.slope_interval[0] < both.slope_interval[1] < 0.105 and "base" not in both.corrected and both.networks == 16


def test_overlapping_folds_widen() -> None:
    points = grid(np.random.default_rng(8), peak(0.4, 0.3, 0.3, drop=0.1), 20, 5, scatter=0.0)
    seeds, folds = fit_surface(points), fit_surface(points, test_fraction=0.2)
    assert seeds is not None and folds is not None
    assert folds.optimum.deviation > 1.05 * seeds.optimum.deviation


# ------------------------------------------------------------------ calibration, by simulation


def simulate(truth: Truth, count: int, **settings: float) -> list[Surface]:
    rng = np.random.default_rng(20)
    surfaces = [fit_surface(grid(rng, truth, **settings)) for _ in range(count)]  # type: ignore[arg-type]
    return [surface for surface in surfaces if surface is not None]


def below(share: float, count: int) -> float:
    """What a frequency of `share` falls below once in a thousand."""
    return share - 3.1 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize("truth", [peak(0.4, 0.3, 0.3), peak(0.6, 0.5, -0.1), corner], ids=["peaked", "edge", "corner"])
@pytest.mark.parametrize(("networks", "seeds"), [(8, 2), (20, 4)])
def test_intervals_hold_the_optimum(truth: Truth, networks: int, seeds: int) -> None:
    """Each of the intervals of 95 %, and the region, hold the true optimum in at least so many grids."""
    surfaces = simulate(truth, 25, networks=networks, seeds=seeds)
    held = np.array([holds(surface, top(truth)) for surface in surfaces])
    assert held[:, 0].mean() >= below(0.90, 25) and held[:, 1].mean() >= below(0.95, 25)
    widths = [np.mean([c.inside for c in surface.optimum.cells]) for surface in surfaces]
    # few networks: wide; many: it has learned something
    assert np.median(widths) > 0.2 if networks == 8 else np.median(widths) < 0.5


@pytest.mark.parametrize("scatter", [0.0, 0.007])
def test_a_constant_is_called_flat(scatter: float) -> None:
    surfaces = simulate(constant, 40, networks=12, seeds=3, scatter=scatter)
    assert np.mean([surface.flat for surface in surfaces]) >= below(0.95, 40)
    # and a clear peak is not
    peaked = simulate(peak(0.3, 0.4, 0.3, drop=0.12), 10, networks=12, seeds=3, scatter=scatter)
    assert np.mean([surface.flat for surface in peaked]) <= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("truth", [constant, peak(0.4, 0.3, 0.3), peak(0.6, 0.5, -0.1), corner],
                         ids=["constant", "peaked", "edge", "corner"])
@pytest.mark.parametrize("scatter", [0.0, 0.007])
def test_calibration_at_length(truth: Truth, scatter: float) -> None:
    surfaces = simulate(truth, 300, networks=12, seeds=3, scatter=scatter)
    if truth is constant:
        assert np.mean([surface.flat for surface in surfaces]) >= below(0.95, 300)
        return
    held = np.array([holds(surface, top(truth)) for surface in surfaces])
    assert held[:, 1].mean() >= below(0.95, 300) and held[:, 0].mean() >= below(0.90, 300)


# ------------------------------------------------------------------ several φ


def two_phis(rng: np.random.Generator, first: Truth, last: Truth, **settings: float) -> list[SurfacePoint]:
    later = grid(rng, last, phi=2.0, **settings)  # type: ignore[arg-type]
    higher = [replace(p, accuracies=tuple(a + 0.02 for a in p.accuracies if a is not None)) for p in later]
    return [*grid(rng, first, **settings), *higher]  # type: ignore[arg-type]


def moves(first: Truth, last: Truth, count: int, **settings: float) -> Sequence[Surface]:
    rng = np.random.default_rng(30)
    surfaces = [fit_surface(two_phis(rng, first, last, **settings)) for _ in range(count)]
    return [surface for surface in surfaces if surface is not None]


def test_an_optimum_that_moves_and_one_that_holds() -> None:
    """Precise data: from mostly depth to mostly resolution, or not at all."""
    sharp = {"networks": 20, "seeds": 3, "noise": 1e-3, "scatter": 5e-4}
    moved = moves(peak(0.7, 0.2, 0.1, drop=0.08), peak(0.1, 0.2, 0.7, drop=0.08), 3, **sharp)
    for surface in moved:
        assert surface.moved is not None and surface.moved.verdict == "moved" and [o.phi for o in surface.optima] == [1.0, 2.0]
        assert surface.moved.difference == pytest.approx((-0.6, 0.0, 0.6), abs=0.1)
        assert 0.03 < surface.moved.loss <= surface.moved.loss_at_most
    for surface in moves(peak(0.4, 0.3, 0.3, drop=0.08), peak(0.4, 0.3, 0.3, drop=0.08), 3, **sharp):
        assert surface.moved is not None and surface.moved.verdict == "held" and surface.moved.loss_at_most < 0.005


def test_noise_is_not_taken_for_a_move() -> None:
    verdicts = [s.moved.verdict for s in moves(peak(0.4, 0.3, 0.3), peak(0.4, 0.3, 0.3), 20, networks=10, seeds=2) if s.moved]
    assert len(verdicts) == 20 and verdicts.count("moved") / 20 <= 0.05 + 3.1 * math.sqrt(0.05 * 0.95 / 20)
    assert verdicts.count("cannot be told") > 10
