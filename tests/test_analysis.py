"""Numbers of analysis.py by second routes: brute force, scipy's closed forms, simulated controls."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalesearch import analysis
from scalesearch.analysis import compare_with_best, kendall_tau, mean_interval, pareto_front, running_best

RNG_SEED = 20240611


@dataclass(frozen=True)
class Point:
    macs: int
    accuracy: float | None


points = st.lists(st.builds(Point, st.integers(1, 12), st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])), max_size=30)


# ------------------------------------------------------------------ fronts


def beaten(point, others):
    return any(o.macs <= point.macs and o.accuracy >= point.accuracy and (o.macs, o.accuracy) != (point.macs, point.accuracy)
               for o in others)


@settings(max_examples=300, deadline=None)
@given(points)
def test_pareto_front_is_what_no_point_beats(items):
    measured = [p for p in items if p.accuracy is not None]
    expected = sorted((p.macs, p.accuracy) for p in measured if not beaten(p, measured))
    front = pareto_front(items)
    assert [(p.macs, p.accuracy) for p in front] == expected


@settings(max_examples=200, deadline=None)
@given(points, st.integers(0, 13))
def test_best_under_is_the_maximum_of_what_fits(items, limit):
    fitting = [p for p in items if p.accuracy is not None and p.macs <= limit]
    best = analysis.best_under(items, limit)
    if not fitting:
        assert best is None
        return
    assert best.macs <= limit and best.accuracy == max(p.accuracy for p in fitting)
    assert best.macs == min(p.macs for p in fitting if p.accuracy == best.accuracy)


def test_running_best_ignores_failures():
    assert running_best([None, 0.5, math.nan, 0.4, None, 0.7, 0.6]) == [None, 0.5, 0.5, 0.5, 0.5, 0.7, 0.7]
    assert running_best([]) == []


def test_optimism_compares_the_gains_of_two_models():
    result = analysis.Optimism(winner=0.666, baseline=0.657, winner_second=0.661, baseline_second=0.657)
    assert result.gain == pytest.approx(0.009) and result.gain_second == pytest.approx(0.004)
    assert result.kept == pytest.approx(4 / 9)
    assert analysis.Optimism(0.5, 0.6, 0.5, 0.5).kept is None


# ------------------------------------------------------------------ intervals


def test_mean_interval_is_students():
    from scipy import stats

    values = [0.91, 0.93, 0.90, 0.95, 0.92]
    expected = stats.t.interval(0.9, 4, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values, confidence=0.9) == pytest.approx(expected)
    # five folds: the variance is s²(1/5 + 1/4) in place of s²/5
    plain, corrected = mean_interval(values), mean_interval(values, test_fraction=1 / 5)
    assert (corrected.high - corrected.low) / (plain.high - plain.low) == pytest.approx(math.sqrt((1 / 5 + 1 / 4) * 5))


@pytest.mark.parametrize("values", [[], [0.9], [0.9, math.nan]])
def test_one_value_has_no_interval(values):
    assert mean_interval(values) is None


def test_a_single_network_gets_students_interval():
    values = [0.91, 0.93, 0.90, 0.95, 0.92]
    standing = compare_with_best({"a": values}, test_fraction=0.2)["a"]
    assert standing.interval == pytest.approx(mean_interval(values, test_fraction=0.2))
    assert standing.tied and standing.bounds is None


# ------------------------------------------------------------------ the comparison's formulas


def layout(k=5, n=4, seed=RNG_SEED):
    rng = np.random.default_rng(seed)
    return 0.8 + 0.02 * rng.normal(size=(k, 1)) + 0.03 * rng.normal(size=n) + 0.01 * rng.normal(size=(k, n))


def named(table):
    return {f"n{i}": [None if math.isnan(v) else float(v) for v in row] for i, row in enumerate(table)}


def test_balanced_comparison_is_tukeys_closed_form():
    from scipy.stats import studentized_range

    y = layout()
    k, n = y.shape
    residuals = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
    variance = (residuals**2).sum() / ((k - 1) * (n - 1))
    half = studentized_range.ppf(0.95, k, (k - 1) * (n - 1)) * math.sqrt(variance / n)
    result = compare_with_best(named(y))
    assert result.degrees == (k - 1) * (n - 1)
    assert result.deviation == pytest.approx(math.sqrt(variance))
    assert result.visible == pytest.approx(half)
    best = int(y.mean(1).argmax())
    assert result.best == f"n{best}" == result.standings[0].id
    for i in range(k):
        standing = result[f"n{i}"]
        difference = y[i].mean() - y[best].mean()
        assert (standing.mean, standing.difference) == pytest.approx((y[i].mean(), difference))
        assert standing.tied == (difference + half >= 0)
        if i != best:
            assert standing.bounds == pytest.approx((difference - half, difference + half))


def test_the_best_differs_from_itself_by_nothing():
    result = compare_with_best(named(layout()), test_fraction=0.25)
    assert result.standings[0].bounds == (0.0, 0.0) and result.standings[0].tied


def test_fold_correction_widens_by_its_closed_form():
    y = named(layout(n=5))
    plain, corrected = compare_with_best(y), compare_with_best(y, test_fraction=1 / 5)
    assert corrected.visible / plain.visible == pytest.approx(math.sqrt((1 / 5 + 1 / 4) / (1 / 5)))


def test_pairs_of_two_networks_are_the_paired_t_test():
    from scipy import stats

    y = layout(k=2, n=6)
    result = compare_with_best(named(y))
    worse = result.standings[1]
    other = y[int(worse.id[1])] - y[1 - int(worse.id[1])]
    assert worse.bounds == pytest.approx(stats.ttest_1samp(other, 0).confidence_interval(0.95), rel=1e-6)


def test_balanced_mean_interval_is_satterthwaites():
    from scipy import stats

    y = layout()
    k, n = y.shape
    folds = k * ((y.mean(0) - y.mean()) ** 2).sum() / (n - 1)
    residual = compare_with_best(named(y)).deviation ** 2
    parts = np.array([folds / k, residual * (k - 1) / k])
    degrees = parts.sum() ** 2 / (parts**2 / [n - 1, (k - 1) * (n - 1)]).sum()
    half = stats.t.ppf(0.975, degrees) * math.sqrt(parts.sum() / n)
    assert compare_with_best(named(y))["n0"].interval == pytest.approx((y[0].mean() - half, y[0].mean() + half))


def test_missing_cells_agree_with_dummy_regression():
    y = layout(k=6, n=5)
    y[0, 1] = y[3, 4] = y[3, 2] = math.nan
    rows, columns = np.nonzero(np.isfinite(y))
    design = np.zeros((len(rows), 6 + 4))
    design[np.arange(len(rows)), rows] = 1
    for fold in range(1, 5):
        design[columns == fold, 5 + fold] = 1
    solution, squares, rank, _ = np.linalg.lstsq(design, y[rows, columns], rcond=None)
    variance = squares[0] / (len(rows) - rank)
    covariance = variance * np.linalg.inv(design.T @ design)
    result = compare_with_best(named(y))
    best = int(result.best[1])
    assert result.degrees == len(rows) - rank and result.deviation == pytest.approx(math.sqrt(variance))
    for i in set(range(6)) - {best}:
        standing = result[f"n{i}"]
        error = math.sqrt(covariance[i, i] + covariance[best, best] - 2 * covariance[i, best])
        assert standing.difference == pytest.approx(solution[i] - solution[best])
        assert standing.bounds.high - standing.difference == pytest.approx(result.critical / math.sqrt(2) * error)


# ------------------------------------------------------------------ edges


def test_one_fold_tells_nothing_apart():
    result = compare_with_best({"a": [0.9], "b": [0.1]})
    assert result.tied == ("a", "b") and result["b"].bounds is None and result["b"].interval is None
    assert result.best == "a" and "no intervals" in result.method


def test_identical_copies_tie_even_without_any_noise():
    result = compare_with_best({"a": [0.9, 0.8, 0.7], "copy": [0.9, 0.8, 0.7], "worse": [0.8, 0.7, 0.6]})
    assert result.tied == ("a", "copy") and result.deviation == 0.0
    assert not result["worse"].tied


def test_failures_are_listed_and_never_tied():
    result = compare_with_best({"a": [0.9, 0.91, 0.92], "dead": [None, None, math.nan], "b": [0.91, 0.90, 0.92]})
    assert result["dead"].n == 0 and result["dead"].mean is None and not result["dead"].tied
    assert result.standings[-1].id == "dead"


def test_one_lucky_fold_wins_nothing():
    result = compare_with_best({"a": [0.80, 0.81, 0.82], "lucky": [None, None, 0.99], "b": [0.79, 0.81, 0.80]})
    assert result.best == "a" and result["lucky"].n == 1


def test_networks_without_a_common_fold_cannot_be_told_apart():
    result = compare_with_best({"a": [0.9, 0.91, None, None], "b": [0.88, 0.90, None, None],
                                "c": [None, None, 0.5, 0.51], "d": [None, None, 0.48, 0.52]})
    assert result["c"].tied and result["c"].bounds is None and result["b"].bounds is not None


def test_nothing_at_all():
    assert compare_with_best({}).best is None
    assert compare_with_best({"a": [None], "b": []}).best is None


def test_intervals_of_accuracies_stay_within_zero_and_one():
    interval = compare_with_best({"a": [1.0, 0.98, 1.0], "b": [0.99, 1.0, 0.97]})["a"].interval
    assert interval.high == 1.0


# ------------------------------------------------------------------ controls


def simulated(rng, networks=10, folds=5, noise=0.006, shared=0.0, fold_noise=0.01):
    """Equal networks; `shared` is the correlation of a network's folds through their common training images."""
    own = math.sqrt(shared) * rng.normal(size=(networks, 1)) + math.sqrt(1 - shared) * rng.normal(size=(networks, folds))
    return 0.9 + fold_noise * rng.normal(size=folds) + noise * own


def loses(table, row, **settings):
    result = compare_with_best({str(i): list(values) for i, values in enumerate(table)}, **settings)
    return not result[str(row)].tied


def counted(rng, networks=10, folds=5, images=300, accuracy=0.97):
    """Counts of right answers, as really measured, near saturation."""
    return rng.binomial(images, accuracy, size=(networks, folds)) / images


def rate_of_false_losses(draws, draw=simulated, test_fraction=None, **options):
    rng = np.random.default_rng(RNG_SEED)
    lost = 0
    for _ in range(draws):
        table = draw(rng, **options)
        result = compare_with_best({str(i): list(row) for i, row in enumerate(table)}, test_fraction=test_fraction)
        lost += len(result.tied) < len(table)
    return lost / draws


def test_equal_networks_tie_in_95_of_100_data_sets():
    # 1,500 data sets: the rate's standard error is 0.6 points
    assert 0.035 < rate_of_false_losses(1500) < 0.065
    assert rate_of_false_losses(500, counted) < 0.08


def test_overlapping_training_sets_need_the_correction():
    # correlation 1/K between folds is what n_test/n_train = 1/(K-1) stands for
    assert 0.035 < rate_of_false_losses(1200, shared=0.2, test_fraction=0.2) < 0.065
    assert rate_of_false_losses(300, shared=0.2) > 0.10


def test_a_crippled_network_loses():
    rng = np.random.default_rng(RNG_SEED)
    detected = 0
    for _ in range(300):
        table = simulated(rng, noise=0.006)
        table[3] -= 0.05  # five points below equal ones, noise of 0.6 points
        detected += loses(table, 3, test_fraction=0.2)
    assert detected >= 0.99 * 300


def test_a_copy_stands_where_its_original_stands():
    rng = np.random.default_rng(RNG_SEED)
    for _ in range(50):
        table = counted(rng)
        table[1] = table[0]
        result = compare_with_best({str(i): list(row) for i, row in enumerate(table)}, test_fraction=0.2)
        assert result["0"].tied == result["1"].tied
        assert result["0"].difference == pytest.approx(result["1"].difference)


# ------------------------------------------------------------------ grids and ranks


def test_constraints_of_the_papers_grid_and_the_realised_one():
    assert analysis.fits_nominal([(1.2, 1.1, 1.15)]) and not analysis.fits_nominal([(1.5, 1.2, 1.2)])
    assert analysis.fits_nominal([(1.9, 1.0, 1.0)])  # exactly at the tolerance
    assert analysis.fits_realised(2.1) and analysis.fits_realised(4.0, phi=2) and not analysis.fits_realised(2.57)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_kendall_tau_is_scipys(pairs):
    from scipy.stats import kendalltau

    x, y = zip(*pairs, strict=True)
    tau = kendall_tau(x, y, resamples=0).tau
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert math.isnan(tau)
    else:
        assert tau == pytest.approx(kendalltau(x, y).statistic)


def test_bootstrap_of_tau_is_the_bootstrap_of_resampled_pairs():
    from scipy.stats import kendalltau

    rng = np.random.default_rng(RNG_SEED)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    result = kendall_tau(x, y, resamples=2000)
    draws = [kendalltau(x[pick], y[pick]).statistic for pick in rng.integers(0, 40, size=(1000, 40))]
    assert result.interval == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.03)
    assert kendall_tau(x, y, resamples=50) == kendall_tau(x, y, resamples=50)


def test_kendall_tau_of_few_or_constant_pairs_has_no_interval():
    assert kendall_tau([1, 2], [1, 2]).interval is None and kendall_tau([1, 1, 1], [1, 2, 3]).interval is None
    with pytest.raises(ValueError, match="pairs"):
        kendall_tau([1, 2], [1])
