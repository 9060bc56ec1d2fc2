"""Agreement of rankings of a few networks: τ is scipy's, intervals cover, a known lean is found and a missing one is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from scalesearch.rank_correlation import (
    FAVOURED,
    bias_direction,
    line_slope,
    noise_ceiling,
    rank_agreement,
    seed_deviation,
    tau_interval,
)


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_scipys_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 9), rng.integers(0, 6, 9)
    assert rank_agreement(x.tolist(), y.tolist()).tau == pytest.approx(stats.kendalltau(x, y).statistic)


def test_a_failed_network_takes_no_part() -> None:
    assert rank_agreement([1, 2, None, 3, 4, 0], [1, 3, 9, 2, None, 0]).n == 4
    assert rank_agreement([1, 2, None, 3, 4, 0], [1, 3, 9, 2, None, 0]).tau == rank_agreement([1, 2, 3, 0], [1, 3, 2, 0]).tau


def test_too_few_or_constant_have_no_interval() -> None:
    assert rank_agreement([1, 2, 3], [1, 2, 3]).interval is None
    constant = rank_agreement([1, 1, 1, 1, 1], [1, 2, 3, 4, 5])
    assert constant.interval is None and math.isnan(constant.tau)


def samples(tau: float, n: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rho, rng = math.sin(math.pi * tau / 2), np.random.default_rng([n, int(100 * tau)])
    x, e = rng.standard_normal((2, count, n))
    return x, rho * x + math.sqrt(1 - rho**2) * e


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("tau", [0.0, 0.5, 0.8])
def test_the_interval_covers_and_is_not_idle(n: int, tau: float) -> None:
    intervals = [rank_agreement(a, b).interval for a, b in zip(*samples(tau, n, 400), strict=True)]
    covered = np.mean([i is not None and i.low <= tau <= i.high for i in intervals])
    # 400 samples: a coverage of 95 % is seen below 92.5 % once in a hundred times.
    assert 0.925 <= covered
    assert np.mean([i.high - i.low for i in intervals if i is not None]) < 1.5


def test_a_perfect_ranking_of_few_is_no_certainty() -> None:
    """The lowest τ at which all pairs of n agree with probability 2.5 %: simulated independently of how it is computed."""
    for n, agree in ((5, 0.025), (8, 0.025)):
        low = tau_interval(1.0, n).low
        x, y = samples(low, n, 20_000)
        perfect = (np.argsort(x) == np.argsort(y)).all(axis=1).mean()
        assert perfect == pytest.approx(agree, abs=0.006) and tau_interval(1.0, n).high == 1.0


def test_intervals_are_symmetric_nested_and_meet_the_normal_approximation() -> None:
    low, high = tau_interval(0.5, 9)
    mirrored = tau_interval(-0.5, 9)
    assert (low, high) == pytest.approx((-mirrored.high, -mirrored.low), abs=0.03)
    wide, narrow = tau_interval(0.5, 9, 0.99), tau_interval(0.5, 9, 0.8)
    assert wide.low < low < narrow.low < narrow.high < high < wide.high
    simulated, normal = tau_interval(0.6, 40), tau_interval(0.6, 41)
    assert simulated.low == pytest.approx(normal.low, abs=0.04) and simulated.high == pytest.approx(normal.high, abs=0.04)


# ------------------------------------------------------------------ noise

def test_the_deviation_of_seeds_is_pooled_over_networks() -> None:
    rows = [[0.5, 0.52, 0.54], [0.9, None, 0.94], [0.7]]
    assert seed_deviation(rows) == pytest.approx(math.sqrt((0.0008 + 0.0008) / 3))
    assert seed_deviation([[0.5], [0.6, None]]) is None


def test_the_ceiling_falls_with_noise_and_needs_seeds() -> None:
    truth = np.linspace(0.5, 0.6, 8)
    rng = np.random.default_rng(0)

    def noisy(deviation: float) -> list[list[float]]:
        return (truth[:, None] + deviation * rng.standard_normal((8, 3))).tolist()

    quiet, loud = noise_ceiling(noisy(0.0005), noisy(0.0005)), noise_ceiling(noisy(0.03), noisy(0.03))
    assert quiet is not None and loud is not None and quiet > 0.97 and loud < 0.8
    assert noise_ceiling([[v] for v in truth], [[v] for v in truth]) is None


# ------------------------------------------------------------------ direction

def test_a_slope_is_that_of_scipy_with_its_interval() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 12))
    slope, interval = line_slope(x, y)
    other = stats.linregress(x, y)
    half = stats.t.ppf(0.975, 10) * other.stderr
    assert slope == pytest.approx(other.slope) and interval == pytest.approx((other.slope - half, other.slope + half))


def test_blocks_have_constants_of_their_own() -> None:
    x = np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])
    y = np.array([0.0, 0.5, 1.0, 9.0, 9.5, 10.1])
    slope, interval = line_slope(x, y, blocks=[0, 0, 0, 1, 1, 1])
    design = np.column_stack([x, np.repeat([1.0, 0.0], 3), np.repeat([0.0, 1.0], 3)])
    found, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    half = stats.t.ppf(0.975, 3) * math.sqrt(residual[0] / 3 * np.linalg.inv(design.T @ design)[0, 0])
    assert slope == pytest.approx(found[0]) and interval == pytest.approx((found[0] - half, found[0] + half))
    assert line_slope(np.array([0.0, 1.0]), np.array([1.0, 3.0])) == (2.0, None)
    with pytest.raises(ValueError, match="two different x"):
        line_slope(np.zeros(4), np.arange(4.0))


@pytest.mark.parametrize("sign, favoured", [(1, FAVOURED["width"][1]), (-1, FAVOURED["width"][0])])
def test_a_lean_is_found_and_named(sign: int, favoured: str) -> None:
    rng = np.random.default_rng(1)
    width, depth = 2.0 ** rng.uniform(4, 7, 16), 2.0 ** rng.uniform(3, 5, 16)
    long = 0.5 + 0.01 * rng.standard_normal(16)
    proxy = long + sign * 0.02 * (np.log2(width) - 5.5)
    found = {b.factor: b for b in bias_direction(proxy.tolist(), long.tolist(), {
        "width": width.tolist(), "depth": depth.tolist(), "resolution": [32.0] * 16})}
    assert found["width"].favours == favoured and str(found["width"]) == f"the proxy favours {favoured} networks"
    assert found["resolution"].interval is None and str(found["resolution"]) == "resolution: cannot tell"


def test_where_nothing_leans_hardly_anything_is_said() -> None:
    said = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        factors = {name: (2.0 ** rng.uniform(3, 6, 8)).tolist() for name in ("depth", "width", "kernel")}
        truth = rng.standard_normal(8)
        both = [(truth + 0.3 * rng.standard_normal(8)).tolist() for _ in range(2)]
        said += any(b.favours for b in bias_direction(*both, factors))
    assert said <= 12  # 5 % of all audits together; above 12 of 100 once in 500 times


def test_too_few_networks_lean_nowhere() -> None:
    (bias,) = bias_direction([1, 2, 3, None], [1, 2, 3, 4], {"depth": [1, 2, 4, 8]})
    assert bias.slope is None and bias.interval is None and bias.favours is None
