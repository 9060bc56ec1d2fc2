"""Differences to a control and to a picked network: against scipy, against Student, and by coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scalesearch.analysis import compare_with_best
from scalesearch.contrasts import compare_with, dunnett_critical


def table(rng, networks=6, seeds=3, noise=0.004, spread=0.0, shared=0.02):
    """Accuracies with a shared luck of the seeds five times the networks' own noise."""
    hard = shared * rng.normal(size=seeds)
    return {f"n{i}": list(0.9 + spread * i + hard + noise * rng.normal(size=seeds)) for i in range(networks)}


@pytest.mark.parametrize(("comparisons", "degrees", "wanted"), [(1, 4, 2.78), (5, 20, 2.73), (9, 20, 2.95), (3, 10_000, 2.35)])
def test_critical_values_are_the_published_ones(comparisons, degrees, wanted):
    assert dunnett_critical(comparisons, degrees) == pytest.approx(wanted, abs=0.006)


def test_critical_value_agrees_with_scipys_multivariate_t():
    correlation = np.full((4, 4), 0.3) + 0.7 * np.eye(4)
    critical = dunnett_critical(4, 8, 0.9, 0.3)
    inside = stats.multivariate_t.cdf(np.full(4, critical), shape=correlation, df=8, lower_limit=np.full(4, -critical), maxpts=200_000,
                                      random_state=0)
    assert inside == pytest.approx(0.9, abs=0.002)


def test_two_networks_are_students_paired_interval():
    rows = table(np.random.default_rng(0), networks=2, seeds=5)
    found = compare_with("n0", rows)["n1"]
    paired = stats.ttest_rel(rows["n1"], rows["n0"]).confidence_interval(0.95)
    assert found.bounds == pytest.approx((paired.low, paired.high), abs=1e-6)
    assert found.difference == pytest.approx(np.mean(rows["n1"]) - np.mean(rows["n0"]))


def test_picked_is_the_comparison_with_the_best():
    rows = table(np.random.default_rng(1), spread=0.002)
    best = compare_with_best(rows)
    found = compare_with(best.best, rows, picked=True)
    for standing in best.standings:
        if standing.id != best.best:
            assert found[standing.id].bounds == pytest.approx(standing.bounds)
            assert (found[standing.id].standing == "tied") == standing.tied


def test_named_beforehand_is_narrower_than_picked_and_one_family_only():
    rows = table(np.random.default_rng(2), networks=7)
    named, picked = compare_with("n0", rows, among=["n1", "n2", "n3"]), compare_with("n0", rows, picked=True)
    assert named.critical < picked.critical and named.degrees == picked.degrees == 12
    assert [d.id for d in named.differences] == ["n1", "n2", "n3"]


def test_intervals_hold_together():
    """95 % of experiments without any true difference have every interval over 0, though seeds differ by five times the noise."""
    rng = np.random.default_rng(3)
    hits = [all(d.standing == "tied" for d in compare_with("n0", table(rng)).differences) for _ in range(400)]
    assert 0.92 <= np.mean(hits) <= 0.98


def test_a_clear_difference_has_its_sign():
    rows = {"a": [0.9, 0.91, 0.92], "b": [0.95, 0.9601, 0.97], "c": [0.85, 0.86, 0.8701]}
    found = compare_with("a", rows)
    assert [d.standing for d in found.differences] == ["ahead", "behind"] and "Dunnett" in found.method


def test_failures_and_single_seeds_leave_no_interval():
    rows = {"a": [0.9, 0.91, 0.92], "b": [0.95, None, 0.97], "c": [None, None, None]}
    found = compare_with("a", rows)
    assert found["c"].difference is None and found["c"].standing == "unknown"
    assert found["b"].bounds is not None and found.degrees == 1
    alone = compare_with("a", {"a": [0.9], "b": [0.95]})
    assert alone["b"].difference == pytest.approx(0.05) and alone["b"].bounds is None and "no interval" in alone.method
    assert compare_with("z", rows)["a"].difference is None


def test_folds_widen():
    rows = table(np.random.default_rng(4))
    seeds, folds = compare_with("n0", rows), compare_with("n0", rows, test_fraction=1 / 3)
    assert folds["n1"].bounds.high - folds["n1"].bounds.low > 1.2 * (seeds["n1"].bounds.high - seeds["n1"].bounds.low)
