"""A Gaussian process for a few thousand observations: numpy and scipy, everything in closed form.

The covariance of two rows of features is

    constant + linear · x·x' + Σ trend_j · t_j·t'_j + bump · matern(Σ (x_k - x'_k)² · scale_k²) (+ noise)

with one scale per group of columns (automatic relevance), trends t that only tilt the mean, each by
a slope of its own, and matern the Matérn function of smoothness 5/2. Hyper-parameters maximise the
marginal likelihood times weak priors, by L-BFGS-B with the analytic gradient (Rasmussen and
Williams, Gaussian Processes for Machine Learning, equations 2.23, 2.24, 5.9). A new observation is
appended to the Cholesky factor, O(n²); everything else is O(n³).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONSTANT = 1.0  # variance of the mean, in units of the observations' variance
# Means and deviations of the normal priors on the logarithms; targets have unit variance, features too.
SCALE_PRIOR = (-1.0, 1.0)  # relative to 1/√groups, so that rows are as far apart in many dimensions as in few
BUMP_PRIOR = (-0.5, 1.0)
LINEAR_PRIOR = (1.0, 1.0)  # relative to 1/columns
TREND_PRIOR = (-1.0, 2.0)
NOISE_PRIOR = (-6.0, 2.0)
BOUNDS = 4.0  # deviations of the prior
JITTER = 1e-8


@dataclass(frozen=True)
class Hyperparameters:
    """Of the covariance above. `logs`: (groups + trends + 3,), the logarithms of scales, trends, bump, linear and noise."""

    logs: Floats
    groups: int

    @property
    def scales(self) -> Floats:
        return np.asarray(np.exp(self.logs[:self.groups]))

    @property
    def trend(self) -> Floats:
        return np.asarray(np.exp(self.logs[self.groups:-3]))

    @property
    def bump(self) -> float:
        return float(np.exp(self.logs[-3]))

    @property
    def linear(self) -> float:
        return float(np.exp(self.logs[-2]))

    @property
    def noise(self) -> float:
        return float(np.exp(self.logs[-1]))


@dataclass(frozen=True)
class Prior:
    """Normal priors on the logarithms of the hyper-parameters: `means` and `deviations` of each."""

    groups: int
    means: Floats
    deviations: Floats

    @classmethod
    def of(cls, groups: Ints, trends: int) -> Prior:
        """groups   (columns,) the scale that each column of the features has"""
        count, columns = int(groups.max()) + 1, len(groups)
        scale, linear = SCALE_PRIOR[0] - 0.5 * np.log(count), LINEAR_PRIOR[0] - np.log(columns)
        means = [*[scale] * count, *[TREND_PRIOR[0]] * trends, BUMP_PRIOR[0], linear, NOISE_PRIOR[0]]
        deviations = [*[SCALE_PRIOR[1]] * count, *[TREND_PRIOR[1]] * trends, BUMP_PRIOR[1], LINEAR_PRIOR[1], NOISE_PRIOR[1]]
        return cls(count, np.array(means), np.array(deviations))

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        return self.means - BOUNDS * self.deviations, self.means + BOUNDS * self.deviations


@dataclass(frozen=True)
class Rows:
    """Features (n, columns) and trends (n, trends) of n networks."""

    features: Floats
    trends: Floats

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, chosen: Any) -> Rows:
        return Rows(self.features[chosen], self.trends[chosen])

    def __add__(self, other: Rows) -> Rows:
        return Rows(np.concatenate([self.features, other.features]), np.concatenate([self.trends, other.trends]))


def fit_hyperparameters(rows: Rows, targets: Floats, groups: Ints, start: Hyperparameters | None = None,
                        afresh: bool = True, steps: int = 50) -> Hyperparameters:
    """The most probable ones that are reached from `start`, and `afresh` or without it from the middle of the priors.

    targets   (n,) with about zero mean and unit variance
    groups    (columns,) the scale that each column of the features has
    """
    from scipy.optimize import minimize

    prior = Prior.of(groups, rows.trends.shape[1])
    low, high = prior.bounds
    found = [minimize(negative_posterior, np.clip(logs, low, high), args=(rows, targets, groups, prior), jac=True, method="L-BFGS-B",
                      bounds=list(zip(low, high, strict=True)), options={"maxiter": steps})
             for logs in ([prior.means] if start is None else [start.logs, prior.means] if afresh else [start.logs])]
    return Hyperparameters(min(found, key=lambda result: float(result.fun)).x, prior.groups)


def negative_posterior(logs: Floats, rows: Rows, targets: Floats, groups: Ints, prior: Prior) -> tuple[float, Floats]:
    """Minus the log marginal likelihood and log prior, up to a constant, and the gradient by `logs`."""
    from scipy.linalg import cho_solve, cholesky, lapack

    hyper = Hyperparameters(logs, prior.groups)
    scaled = rows.features * hyper.scales[groups]
    shape, slope = matern_and_slope(squared_distances(scaled, scaled))
    linear = rows.features @ rows.features.T
    covariance = CONSTANT + hyper.bump * shape + hyper.linear * linear + (rows.trends * hyper.trend) @ rows.trends.T
    covariance[np.diag_indices(len(rows))] += hyper.noise + JITTER
    factor = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
    weights = cho_solve((factor, True), targets, check_finite=False)
    deviates = (logs - prior.means) / prior.deviations
    value = 0.5 * float(targets @ weights) + float(np.log(factor.diagonal()).sum()) + 0.5 * float(deviates @ deviates)

    inverse = np.tril(lapack.dpotri(factor, lower=1)[0])
    pull = np.outer(weights, weights) - inverse - np.tril(inverse, -1).T  # the gradient by the covariance is -pull/2
    # d shape / d log scale_k = -slope · (scaled_k - scaled'_k)²; its weighted sum needs no array of that size per column.
    weighted = pull * slope
    by_column = -2 * hyper.bump * (weighted.sum(axis=1) @ scaled**2 - np.einsum("ik,ik->k", scaled, weighted @ scaled))
    gradient = np.concatenate([
        np.bincount(groups, by_column), hyper.trend * np.einsum("ij,ij->j", rows.trends, pull @ rows.trends),
        [hyper.bump * float((pull * shape).sum()), hyper.linear * float((pull * linear).sum()), hyper.noise * float(np.trace(pull))]])
    return value, -0.5 * gradient + deviates / prior.deviations


def matern_and_slope(squared: Floats) -> tuple[Floats, Floats]:
    """Matérn 5/2 of squared distances, and -2 times its derivative by them."""
    root = np.sqrt(5 * squared)
    decay = np.exp(-root)
    return (1 + root + root * root / 3) * decay, (5 / 3) * (1 + root) * decay


def matern(squared: Floats) -> Floats:
    """The first of them, in place: most of a prediction's time is spent here."""
    squared *= 5
    root = np.sqrt(squared)
    squared /= 3
    squared += root
    squared += 1
    squared *= np.exp(np.negative(root, out=root), out=root)
    return squared


def squared_distances(left: Floats, right: Floats) -> Floats:
    """(n, columns), (m, columns) → (n, m)."""
    squared = left @ right.T
    squared *= -2
    squared += (left * left).sum(axis=1)[:, None]
    squared += (right * right).sum(axis=1)
    return np.maximum(squared, 0, out=squared)


@dataclass(frozen=True)
class GaussianProcess:
    """A process conditioned on `rows` and `targets`.

    factor     (n, n) lower Cholesky factor of the covariance with noise
    whitened   (n,) its inverse times the targets
    weights    (n,) the covariance's inverse times the targets
    """

    hyper: Hyperparameters
    groups: Ints
    rows: Rows
    targets: Floats
    factor: Floats
    whitened: Floats
    weights: Floats

    @classmethod
    def of(cls, hyper: Hyperparameters, groups: Ints, rows: Rows, targets: Floats) -> GaussianProcess:
        from scipy.linalg import cholesky, solve_triangular

        covariance = _covariance(hyper, groups, rows, rows)
        covariance[np.diag_indices(len(rows))] += hyper.noise + JITTER
        factor = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
        whitened = solve_triangular(factor, targets, lower=True, check_finite=False)
        return cls(hyper, groups, rows, targets, factor, whitened, _weights(factor, whitened))

    def __len__(self) -> int:
        return len(self.rows)

    def appended(self, rows: Rows, targets: Floats | None = None) -> GaussianProcess:
        """With more observations and the same hyper-parameters; None: what it expects them to be, which
        narrows the deviation around them and moves nothing else."""
        from scipy.linalg import cholesky, solve_triangular

        known, more = len(self), len(rows)
        across = solve_triangular(self.factor, _covariance(self.hyper, self.groups, self.rows, rows), lower=True, check_finite=False)
        own = _covariance(self.hyper, self.groups, rows, rows) - across.T @ across
        own[np.diag_indices(more)] += self.hyper.noise + JITTER
        corner = cholesky(own, lower=True, check_finite=False)
        # Column order, as LAPACK leaves it: a copy at each triangular solve would cost more than the solve.
        factor = np.zeros((known + more, known + more), order="F")
        factor[:known, :known], factor[known:, :known], factor[known:, known:] = self.factor, across.T, corner
        expected = across.T @ self.whitened
        told = expected if targets is None else targets
        whitened = np.concatenate([self.whitened, solve_triangular(corner, told - expected, lower=True, check_finite=False)])
        return replace(self, rows=self.rows + rows, targets=np.concatenate([self.targets, told]), factor=factor, whitened=whitened,
                       weights=_weights(factor, whitened))

    @property
    def fitted(self) -> Floats:
        """The mean (n,) at its own rows."""
        return np.asarray(self.targets - (self.hyper.noise + JITTER) * self.weights)

    def across(self, rows: Rows) -> Floats:
        """Covariance (n observed, m) with other rows."""
        return _covariance(self.hyper, self.groups, self.rows, rows)

    def mean(self, across: Floats) -> Floats:
        return np.asarray(self.weights @ across)

    def deviation(self, rows: Rows, across: Floats) -> Floats:
        """Deviation (m,) of the noise-free value."""
        from scipy.linalg import solve_triangular

        explained = solve_triangular(self.factor, across, lower=True, check_finite=False)
        own = CONSTANT + self.hyper.bump + self.hyper.linear * (rows.features**2).sum(axis=1) + rows.trends**2 @ self.hyper.trend
        return np.asarray(np.sqrt(np.maximum(own - np.einsum("ij,ij->j", explained, explained), 1e-12)))


def _weights(factor: Floats, whitened: Floats) -> Floats:
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(factor, whitened, lower=True, trans="T", check_finite=False))


def _covariance(hyper: Hyperparameters, groups: Ints, left: Rows, right: Rows) -> Floats:
    scales = hyper.scales[groups]
    covariance = matern(squared_distances(left.features * scales, right.features * scales))
    covariance *= hyper.bump
    # All that is linear in one product: features, trends and the constant.
    weighted = np.column_stack([hyper.linear * left.features, hyper.trend * left.trends, np.full(len(left), CONSTANT)])
    covariance += weighted @ np.column_stack([right.features, right.trends, np.ones(len(right))]).T
    return covariance
