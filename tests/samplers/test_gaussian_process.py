"""The process against textbook formulas, its gradient against differences, appending against starting anew."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern

from scalesearch.samplers.acquisition import log_expected_improvement
from scalesearch.samplers.gaussian_process import (
    CONSTANT,
    JITTER,
    GaussianProcess,
    Hyperparameters,
    Prior,
    Rows,
    fit_hyperparameters,
    negative_posterior,
)

GROUPS = np.array([0, 1, 2, 2])


def some_rows(count: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    return Rows(rng.normal(size=(count, 4)), rng.normal(size=(count, 2)))


def some_targets(rows: Rows) -> np.ndarray:
    targets = np.sin(2 * rows.features[:, 0]) + 0.5 * rows.features[:, 1] + 0.1 * rows.trends[:, 0]
    return (targets - targets.mean()) / targets.std()


def some_hyper(seed: int = 0) -> Hyperparameters:
    prior = Prior.of(GROUPS, trends=2)
    return Hyperparameters(prior.means + 0.3 * np.random.default_rng(seed).normal(size=len(prior.means)), prior.groups)


def test_it_is_the_process_of_scikit_learn() -> None:
    rows, others = some_rows(30), some_rows(7, seed=1)
    rows, others = Rows(rows.features, np.zeros((30, 2))), Rows(others.features, np.zeros((7, 2)))
    targets, hyper = some_targets(rows), some_hyper()
    hyper.logs[-2] = np.log(0.3 * CONSTANT)
    process = GaussianProcess.of(hyper, GROUPS, rows, targets)
    # Its dot product has a constant of its own, of variance 1.
    kernel = (ConstantKernel(CONSTANT - hyper.linear) + ConstantKernel(hyper.linear) * DotProduct(1.0)
              + ConstantKernel(hyper.bump) * Matern(1 / hyper.scales[GROUPS], nu=2.5))
    other = GaussianProcessRegressor(kernel, optimizer=None, alpha=hyper.noise + JITTER).fit(rows.features, targets)
    mean, deviation = other.predict(others.features, return_std=True)
    across = process.across(others)
    assert process.mean(across) == pytest.approx(mean, abs=1e-6)
    assert process.deviation(others, across) == pytest.approx(deviation, abs=1e-6)


def test_the_likelihood_is_that_of_a_normal_and_the_gradient_its_own() -> None:
    from scipy.stats import multivariate_normal

    rows = some_rows(20)
    targets, prior, hyper = some_targets(rows), Prior.of(GROUPS, trends=2), some_hyper()
    process = GaussianProcess.of(hyper, GROUPS, rows, targets)
    value, gradient = negative_posterior(hyper.logs, rows, targets, GROUPS, prior)
    covariance = process.factor @ process.factor.T
    expected = -multivariate_normal(np.zeros(20), covariance).logpdf(targets) - 10 * np.log(2 * np.pi)
    assert value == pytest.approx(expected + 0.5 * (((hyper.logs - prior.means) / prior.deviations) ** 2).sum())
    steps = 1e-5 * np.eye(len(gradient))
    numeric = [(negative_posterior(hyper.logs + step, rows, targets, GROUPS, prior)[0]
                - negative_posterior(hyper.logs - step, rows, targets, GROUPS, prior)[0]) / 2e-5 for step in steps]
    assert gradient == pytest.approx(np.array(numeric), abs=1e-5)


def test_appending_is_conditioning_on_all() -> None:
    rows, hyper = some_rows(25), some_hyper()
    targets = some_targets(rows)
    whole = GaussianProcess.of(hyper, GROUPS, rows, targets)
    grown = GaussianProcess.of(hyper, GROUPS, rows[:18], targets[:18]).appended(rows[18:24], targets[18:24])
    grown = grown.appended(rows[24:], targets[24:])
    assert grown.factor == pytest.approx(whole.factor) and grown.weights == pytest.approx(whole.weights, abs=1e-6)
    assert whole.fitted == pytest.approx(whole.mean(whole.across(rows)))


def test_what_is_expected_moves_no_mean_and_narrows_the_deviation() -> None:
    rows, others = some_rows(15), some_rows(5, seed=1)
    process = GaussianProcess.of(some_hyper(), GROUPS, rows, some_targets(rows))
    expecting = process.appended(others[:1])
    before, after = process.across(others), expecting.across(others)
    assert expecting.mean(after) == pytest.approx(process.mean(before))
    narrowed = expecting.deviation(others, after) / process.deviation(others, before)
    assert narrowed[0] < 0.5 and (narrowed <= 1 + 1e-9).all()


def test_fitting_finds_what_matters_and_the_noise() -> None:
    rng = np.random.default_rng(0)
    rows = Rows(rng.normal(size=(120, 4)), np.zeros((120, 2)))
    targets = np.sin(2 * rows.features[:, 0]) + 0.3 * rng.normal(size=120)
    hyper = fit_hyperparameters(rows, targets / targets.std(), GROUPS)
    assert hyper.scales[0] > 5 * hyper.scales[1:].max()
    assert np.sqrt(hyper.noise) * targets.std() == pytest.approx(0.3, rel=0.25)


def test_log_expected_improvement() -> None:
    """Against the integral, and where that underflows against φ(z)/z²."""
    rng = np.random.default_rng(0)
    draws = 0.3 + 0.2 * rng.normal(size=1_000_000)
    sampled = np.log(np.maximum(draws - 0.5, 0).mean())
    assert log_expected_improvement(np.array([0.3]), np.array([0.2]), 0.5)[0] == pytest.approx(sampled, abs=0.01)
    far = log_expected_improvement(np.array([0.0]), np.array([1.0]), 40.0)[0]
    assert far == pytest.approx(-800 - 0.5 * np.log(2 * np.pi) - 2 * np.log(40), abs=0.01)
    around = log_expected_improvement(np.array([-1.001, -0.999]), np.ones(2), 0.0)
    assert around[1] - around[0] == pytest.approx(0.002 * 1.9, abs=5e-4), "the two formulas meet"
