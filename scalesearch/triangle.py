"""The triangle of shares: its lattice, a quadratic over it, and features of that quadratic that favour no corner.

A row of shares is (depth, width, resolution) and adds up to 1.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from scalesearch.analysis import Floats

# Numbers of a quadratic over the triangle beside its level.
SHAPE = 5


@functools.cache
def lattice(n: int) -> Floats:
    """All shares in whole n-ths, (places, 3).

    >>> lattice(1).tolist()
    [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    return np.array([(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)]) / n


@functools.cache
def nearest(fine: int, coarse: int) -> NDArray[np.int64]:
    """For each place of the fine lattice the nearest of the coarse one."""
    squares = ((lattice(fine)[:, None] - lattice(coarse)[None]) ** 2).sum(axis=2)
    return np.asarray(squares.argmin(axis=1), dtype=np.int64)


def distance(places: Floats, others: Floats) -> Floats:
    """From each place to the nearest of the others, in shares; infinite where there are none."""
    return np.asarray(np.sqrt(((places[:, None] - others[None]) ** 2).sum(axis=2).min(axis=1, initial=math.inf)))


@functools.cache
def kernel(n: int, width: float) -> Floats:
    """Weights (rows sum to 1) by which a lattice's places are averaged with their neighbours."""
    weights = np.exp(-((lattice(n)[:, None] - lattice(n)[None]) ** 2).sum(axis=2) / (2 * width**2))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def scheffe(shares: Floats) -> Floats:
    """The monomials of Scheffé's quadratic mixture polynomial (1958), (n, 6): d, w, r, d·w, d·r, w·r."""
    d, w, r = shares[:, 0], shares[:, 1], shares[:, 2]
    return np.stack([d, w, r, d * w, d * r, w * r], axis=1)


def scheffe_of(level: Floats, shape: Floats) -> Floats:
    """Level (n,) and shape (n, 5) as the six numbers of Scheffé's polynomial (n, 6): both are the same quadratics."""
    places = lattice(2)
    return np.asarray(np.linalg.solve(scheffe(places), shape_features(places) @ shape.T + level).T)


def winners_of(drawn: Floats, n: int) -> NDArray[np.int64]:
    """The place of the lattice at which each of many surfaces (Scheffé's numbers, (draws, 6)) is highest."""
    return np.asarray((drawn @ scheffe(lattice(n)).T).argmax(axis=1), dtype=np.int64)


def predicted(places: Floats, mean: Floats, covariance: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation at places (n, 3) of a surface whose six numbers have this mean and covariance."""
    rows = scheffe(places)
    return rows @ mean, np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", rows, covariance, rows), 0.0))


def shape_features(shares: Floats) -> Floats:
    """Shares (n, 3) → (n, 5): two linear and three curved features, each of mean 0 and variance 1 over the triangle."""
    centre, spread = _moments()
    return np.asarray((_raw(shares) - centre) / spread)


def shape_deviations() -> Floats:
    """Prior deviations of the five numbers of a shape of size 1: half of the variance linear, half curved."""
    return np.asarray(np.sqrt([1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6]))


def _raw(shares: Floats) -> Floats:
    """Plane coordinates, the triangle's centre at 0 and its corners at distance 1, and their products."""
    x = (2 * shares[:, 0] - shares[:, 1] - shares[:, 2]) / 2
    y = math.sqrt(3) / 2 * (shares[:, 1] - shares[:, 2])
    return np.stack([x, y, x**2 + y**2, x**2 - y**2, 2 * x * y], axis=1)


@functools.cache
def _moments() -> tuple[Floats, Floats]:
    """Mean and deviation of the raw features over the triangle, by its 14,400 small triangles' centres."""
    n = 120
    a, b = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    up, down = a + b < n, a + b < n - 1
    first = np.concatenate([a[up] + 1 / 3, a[down] + 2 / 3]) / n
    second = np.concatenate([b[up] + 1 / 3, b[down] + 2 / 3]) / n
    raw = _raw(np.stack([first, second, 1 - first - second], axis=1))
    return raw.mean(axis=0), raw.std(axis=0)
