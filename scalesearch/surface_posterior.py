"""Bayesian regression of network means on a quadratic over the triangle: the numbers under `response_surface`.

    accuracy = level + shape(shares) + slope · (log2 cost − φ) + effect of the seed + scatter(network) + noise

The shape is a full quadratic, five numbers (Scheffé's mixture polynomial less its level), in features
of unit variance over the triangle. Priors, all weak and symmetric in depth, width and resolution:

size     the shape's standard deviation over the triangle is half-Cauchy, of scale 2 in deviations of
         one training
shape    half of its variance linear, half curved, of either sign: that a balance is best is a
         finding, never an assumption
scatter  of a network around the surface (how rounding falls for it) is half-normal, of scale 2 in
         deviations of one training
noise    Jeffreys'

Size and scatter are integrated over and not set to their best values: from eight networks nobody
knows them, and an optimum whose interval took them for known would be too sure of itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalesearch.analysis import Fit, Floats
from scalesearch.triangle import SHAPE, shape_deviations, shape_features

SIZE = 2.0
SIZES = np.geomspace(0.1, 100.0, 13)
SCATTER, SCATTER_SCALE = np.arange(11) * 0.4, 2.0
# How much smaller than the shape its change with φ is taken to be beforehand.
SHIFT = 0.5
# Standard deviation of what nothing is known about, in deviations of one training.
VAGUE = 1e3
# Accuracy that a doubling of the cost may bring, where networks of no other cost were trained.
UNKNOWN_SLOPE = 0.05
DRAWS = 2000
# Constant surfaces that are simulated, so that the p-value has steps of a five-hundredth.
CONSTANTS = 499

# Rounding of sums of fractions, and a noise that is none.
_SAME, _TINY = 1e-12, 1e-6


class Others(NamedTuple):
    """Normal priors of the coefficients that are no shape: means, and deviations in deviations of one training."""

    means: Floats
    deviations: Floats


class Draws(NamedTuple):
    """Draws of the posterior (rows): coefficients, noise of one training, scatter of a network; and the test for a constant.

    p_value   how often a constant surface looks at least as curved
    """

    coefficients: Floats
    noise: Floats
    scatter: Floats
    p_value: float


def shape_columns(phi: Floats) -> int:
    """Five for the shape; with several φ five more for how it changes with φ."""
    return SHAPE * (2 if len(np.unique(phi)) > 1 else 1)


def along(phi: Floats, phis: Floats) -> Floats:
    """φ from -1 (the first) to 1 (the last)."""
    return np.asarray(2 * (phi - phis.min()) / np.ptp(phis) - 1)


def regressors(shares: Floats, phi: Floats, remainder: Floats, slope: tuple[float, float]) -> tuple[Floats, Others]:
    """Columns: shape (and its change with φ), the level of every φ but the first, slope last; priors of all but the shape."""
    shape = shape_features(shares)
    levels = (phi[:, None] == np.unique(phi)[None, 1:]).astype(float)
    shift = [shape * along(phi, phi)[:, None]] if levels.shape[1] else []
    means, deviations = np.zeros(levels.shape[1] + 1), np.full(levels.shape[1] + 1, VAGUE)
    means[-1], deviations[-1] = slope
    return np.concatenate([shape, *shift, levels, remainder[:, None]], axis=1), Others(means, deviations)


def slope_prior(costs: Floats, means: Floats, levels: Sequence[Sequence[int]], noise: float) -> tuple[float, float]:
    """Mean of the slope, by levels of different cost (places of networks), and its deviation in deviations of one training.

    A line through the levels is no tangent: half its slope either way.
    """
    noise = noise or float(means.std()) or _TINY
    cost, level = (np.array([values[list(rows)].mean() for rows in levels]) for values in (costs, means))
    if len(levels) < 2 or np.ptp(cost) < 0.1:
        return 0.0, UNKNOWN_SLOPE / noise
    slope = float(np.polyfit(cost, level, 1)[0])
    return slope, max(abs(slope) / 2 / noise, 0.5)


def sample(fit: Fit, features: Floats, shape_columns: int, others: Others, overlap: float, seed: int = 0) -> Draws | None:
    """Posterior of the coefficients of `features` (networks × columns) given network means and their noise.

    The first `shape_columns` columns are shape (five for the shape and, with several φ, five for its
    shift); `others` are the priors of the rest. None where no two networks share a seed. `overlap` is
    n_test/n_train of folds, which is to a network what scatter is (Nadeau & Bengio 2003): more folds
    do not average it away.

    Given size and scatter all is conjugate (normal times inverse gamma) and in closed form; the two
    are summed over a grid. The p-value is that of the Bayes factor against a constant surface,
    among simulated constant ones with the scatter that the data have under a constant.
    """
    rank = round(float(np.trace(fit.projector)))
    if rank < 1:
        return None
    spread, basis = np.linalg.eigh(fit.inverse)
    spread, basis = spread[-rank:], basis[:, -rank:]
    replicated = fit.degrees > 0 and fit.variance > 0
    # the network's own share of a training's variance; where nothing is replicated the two cannot be told apart
    own = SCATTER**2 / (1 + SCATTER**2) if replicated else np.zeros(1)
    design = basis.T @ features
    rest = basis.T @ fit.means - design[:, shape_columns:] @ others.means
    noise = (1 - own)[:, None] * (spread + overlap) + own[:, None] if replicated else np.ones((1, rank))
    shape = np.concatenate([shape_deviations() * SHIFT**block for block in range(shape_columns // SHAPE)])
    sizes = np.concatenate([[0.0], SIZES])[:, None]
    priors = np.concatenate([sizes * shape, np.broadcast_to(others.deviations, (len(sizes), len(others.deviations)))], axis=1)
    model = _Model.of(design, noise, own, priors, fit.degrees if replicated else 0)
    squares = np.array([fit.variance * fit.degrees if replicated else 0.0])
    rng = np.random.default_rng(seed)
    at = model.at(rest[None], squares)
    coefficients, variance, share = model.draw(at, rng)
    centre = np.concatenate([np.zeros(shape_columns), others.means])
    share = share if replicated else np.ones_like(share)
    return Draws(coefficients + centre, np.sqrt(variance * (1 - share)), np.sqrt(variance * share), model.p_value(at, rng))


class _At(NamedTuple):
    """Data sets (first axis) at every scatter and size: whitened scores, sums of squares, logarithms of the posterior weights."""

    half: Floats  # (scatter, size, coefficients, data sets)
    total: Floats  # (data sets, scatter, size)
    weights: Floats  # (data sets, scatter, size)

    @property
    def factor(self) -> Floats:
        """Logarithm of the Bayes factor of a shape against none, for each data set."""
        return np.asarray(_log_sum(self.weights[:, :, 1:]) - _log_sum(self.weights[:, :, :1]))


@dataclass(frozen=True)
class _Model:
    """Everything but the accuracies. The first row of `priors` has no shape: the constant surface.

    design (data, coefficients), noise (scatter, data), own (scatter,), priors (size, coefficients),
    root: Cholesky factors (scatter, size, coefficients, coefficients) of 1 + priors·information·priors
    """

    design: Floats
    noise: Floats
    own: Floats
    priors: Floats
    degrees: int
    root: Floats

    @classmethod
    def of(cls, design: Floats, noise: Floats, own: Floats, priors: Floats, degrees: int) -> _Model:
        information = np.einsum("nc,on,nd->ocd", design, 1 / noise, design)
        scaled = priors[None, :, :, None] * information[:, None] * priors[None, :, None, :]
        return cls(design, noise, own, priors, degrees, np.linalg.cholesky(scaled + np.eye(design.shape[1])))

    def at(self, rest: Floats, squares: Floats) -> _At:
        """`rest` (data sets, data) and the residual sums of squares within networks."""
        score = np.einsum("nc,on,mn->ocm", self.design, 1 / self.noise, rest)
        half = np.linalg.solve(self.root, self.priors[None, :, :, None] * score[:, None])
        left = 1 - self.own
        total = np.einsum("mn,on->mo", rest**2, 1 / self.noise)[:, :, None] - np.moveaxis((half**2).sum(axis=2), -1, 0)
        total = np.maximum(np.maximum(total, 0.0) + squares[:, None, None] / left[:, None], _SAME**2)
        logs = (-0.5 * (np.log(self.noise).sum(axis=1) + self.degrees * np.log(left))[:, None] - self._volume
                - 0.5 * self.count * np.log(total))
        return _At(half, total, np.asarray(logs + self._prior))

    @property
    def count(self) -> int:
        """Independent numbers that tell the noise."""
        return int(self.design.shape[0]) + self.degrees

    @functools.cached_property
    def _volume(self) -> Floats:
        return np.asarray(np.log(np.diagonal(self.root, axis1=2, axis2=3)).sum(axis=2))

    @functools.cached_property
    def _prior(self) -> Floats:
        """Logarithms (scatter, size): half-normal, and half-Cauchy on a logarithmic grid; the constant beside all sizes together."""
        scatter = np.exp(-((SCATTER / SCATTER_SCALE) ** 2) / 2) if len(self.own) > 1 else np.ones(1)
        size = SIZES / (1 + (SIZES / SIZE) ** 2)
        return np.asarray(np.log(scatter / scatter.sum())[:, None] + np.log(np.concatenate([[1.0], size / size.sum()])))

    def draw(self, at: _At, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
        """Coefficients, variance of a training with its network's scatter, and the scatter's share of it, given a shape."""
        o, s = _pick(at.weights[0, :, 1:], DRAWS, rng)
        s = s + 1
        variance = at.total[0, o, s] / rng.chisquare(self.count, DRAWS)
        normal = at.half[o, s, :, 0] + np.sqrt(variance)[:, None] * rng.standard_normal((DRAWS, self.design.shape[1]))
        found = np.linalg.solve(np.swapaxes(self.root[o, s], 1, 2), normal[..., None])[..., 0]
        return self.priors[s] * found, variance, self.own[o]

    def p_value(self, at: _At, rng: np.random.Generator) -> float:
        """Constant surfaces with the priors' slope and the scatter that the data have under a constant."""
        o, _ = _pick(at.weights[0, :, :1], CONSTANTS, rng)
        rest = np.sqrt(self.noise[o]) * rng.standard_normal((CONSTANTS, self.design.shape[0]))
        rest = rest + (rng.standard_normal((CONSTANTS, self.design.shape[1])) * self.priors[0]) @ self.design.T
        squares = (1 - self.own[o]) * rng.chisquare(self.degrees, CONSTANTS) if self.degrees else np.zeros(CONSTANTS)
        constants = self.at(rest, squares).factor
        return float((1 + (constants >= at.factor[0] - 1e-9).sum()) / (1 + CONSTANTS))


def _pick(logs: Floats, count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions drawn with these (unnormalised, logarithmic) weights."""
    weights = np.exp(logs - logs.max())
    flat = rng.choice(weights.size, count, p=(weights / weights.sum()).ravel())
    rows, columns = np.divmod(flat, logs.shape[1])
    return rows, columns


def _log_sum(logs: Floats) -> Floats:
    top = logs.max(axis=(1, 2), keepdims=True)
    return np.asarray(top[:, 0, 0] + np.log(np.exp(logs - top).sum(axis=(1, 2))))
