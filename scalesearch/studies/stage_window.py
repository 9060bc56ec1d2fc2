"""Networks of one width, resolution and realised cost that spread their layers differently, and the few of them to train.

Costs of stages add up and further layers of a stage all cost the same, so every way of multiplying the
layers of each group of stages is priced without building a network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scalesearch.architecture import Architecture, blocks
from scalesearch.cost import block_cost, cost_of
from scalesearch.errors import BudgetError
from scalesearch.scaling import ScalingRule, round_layers

Floats = NDArray[np.float64]

# A group's layers are multiplied by at most so much more or less than the uniform network's.
SPREAD = 2.0
# Networks of the window that are looked at; beyond it each group's multipliers are thinned out.
MOST_CANDIDATES = 400_000
# Windows that are tried when the first holds too few networks, in tolerances.
WIDER = (1.0, 2.0, 3.0)
# Keeps the determinant of a design that is not yet one above 0.
_RIDGE = 1e-9


def stage_groups(costs: Sequence[float], groups: int) -> list[range]:
    """Contiguous groups of stages whose costs are as equal as they can be: the dearest costs least, then the others.

    >>> stage_groups([10, 55, 38, 44, 86, 92, 30], 3)
    [range(0, 3), range(3, 5), range(5, 7)]
    """
    cuts = ((0, *inner, len(costs)) for inner in itertools.combinations(range(1, len(costs)), groups - 1))
    best = min(cuts, key=lambda cut: sorted((sum(costs[a:b]) for a, b in itertools.pairwise(cut)), reverse=True))
    return [range(a, b) for a, b in itertools.pairwise(best)]


def free_stages(base: Architecture, rule: ScalingRule) -> list[int]:
    """Positions of the stages whose layers the rule scales."""
    every = range(len(base.stages))
    return list(every) if rule.scale_ends else list(every)[1:-1]


@dataclass(frozen=True)
class Window:
    """Networks of equal realised cost: a row of each array is one of them.

    layers        of every stage        multipliers   of each group, in units of the rule's own
    shares        of each group in the stages' multiply-adds    ratios   cost in units of the target
    distances     from the uniform network, in the logarithm of the multipliers    uniform   its row
    """

    start: Architecture
    groups: tuple[tuple[int, ...], ...]
    layers: NDArray[np.int64]
    multipliers: Floats
    shares: Floats
    ratios: Floats
    distances: Floats
    uniform: int
    tolerance: float

    def network(self, row: int) -> Architecture:
        if row == self.uniform:
            return self.start
        stages = tuple(replace(stage, layers=int(n)) for stage, n in zip(self.start.stages, self.layers[row], strict=True))
        moved = self.start.replace(stages=stages)
        return moved.replace(name=f"{self.start.name.rpartition('-')[0] or self.start.name}-{moved.id[:6]}")


def find_window(base: Architecture, network: Architecture, rule: ScalingRule, phi: float, groups: int, target: float, tolerance: float,
                points: int | None = None) -> Window:
    """All networks of `network`'s width and resolution at the target cost; wider where these are too few for a line."""
    fewest = groups + 2
    for times in WIDER:
        window = _window(base, network, rule, phi, groups, target, times * tolerance)
        if len(window.shares) >= max(fewest, points or 0) or (times == WIDER[-1] and len(window.shares) >= fewest):
            return window
    raise BudgetError(f"stages={groups}: only {len(window.shares)} networks of {network.name or 'this width and resolution'} spread their "
                      f"layers differently within ±{times * tolerance:.0%} of {target:,.0f} multiply-adds; a line takes {fewest}: "
                      "fewer groups, a larger phi or a wider tolerance give more")


def _window(base: Architecture, network: Architecture, rule: ScalingRule, phi: float, groups: int, target: float,
            tolerance: float) -> Window:
    first, again = stage_costs(network)
    own = [stage.layers for stage in network.stages]
    costs = [f + a * (n - 1) for f, a, n in zip(first, again, own, strict=True)]
    free = free_stages(base, rule)
    parts = [tuple(free[i] for i in part) for part in stage_groups([costs[i] for i in free], groups)]
    most = int(MOST_CANDIDATES ** (1 / groups))
    options = [_thinned(_options(base, rule, phi, part, [own[i] for i in part]), most) for part in parts]
    rest = cost_of(network).macs - sum(costs[i] for part in parts for i in part)
    spent = [np.array([sum(first[i] + again[i] * (n - 1) for i, n in zip(part, layers, strict=True)) for layers, _ in option])
             for part, option in zip(parts, options, strict=True)]
    total = sum(np.ix_(*spent), start=np.float64(rest))
    inside = np.argwhere(np.abs(total / target - 1) <= tolerance + 1e-9)
    start = [next(k for k, (layers, _) in enumerate(option) if layers == tuple(own[i] for i in part))
             for part, option in zip(parts, options, strict=True)]
    if not (inside == start).all(axis=1).any():
        inside = np.vstack([inside, start])
    layers = np.tile(own, (len(inside), 1))
    for g, (part, option) in enumerate(zip(parts, options, strict=True)):
        layers[:, list(part)] = np.array([row for row, _ in option])[inside[:, g]]
    multipliers = np.stack([np.array([m for _, m in option])[inside[:, g]] for g, option in enumerate(options)], axis=1)
    by_group = np.stack([spent[g][inside[:, g]] for g in range(groups)], axis=1).astype(float)
    uniform = int(np.flatnonzero((inside == start).all(axis=1))[0])
    return Window(network, tuple(parts), layers, multipliers, by_group / by_group.sum(axis=1, keepdims=True),
                  (rest + by_group.sum(axis=1)) / target, np.abs(np.log(multipliers)).sum(axis=1), uniform, tolerance)


def stage_costs(network: Architecture) -> tuple[list[int], list[int]]:
    """Multiply-adds of each stage's first layer, and of each further one: all further ones are equal."""
    first, again = [0] * len(network.stages), [0] * len(network.stages)
    two = network.replace(stages=tuple(replace(stage, layers=2) for stage in network.stages))
    for block in blocks(two):
        if 1 <= block.stage <= len(network.stages):
            (first if block.layer == 1 else again)[block.stage - 1] = block_cost(block).macs
    return first, again


Option = tuple[tuple[int, ...], float]
"""Layers of a group's stages, and a multiplier in units of the rule's own that gives them."""


def _options(base: Architecture, rule: ScalingRule, phi: float, part: Sequence[int], own: Sequence[int]) -> list[Option]:
    """Every distinct one within the spread, the uniform one, whose multiplier is 1, first."""
    depths = rule.depths(base, phi)
    scale = [depths[i] * base.stages[i].layers for i in part]
    steps = {k / each for each in scale for k in range(1, math.floor(each * SPREAD) + 1) if 1 / SPREAD <= k / each <= SPREAD}
    edges = sorted({1 / SPREAD, SPREAD, *steps})
    found = {tuple(own): 1.0}
    for low, high in itertools.pairwise(edges):
        middle = (low + high) / 2
        found.setdefault(tuple(round_layers(base.stages[i].layers, middle * depths[i]) for i in part), middle)
    return list(found.items())


def _thinned(options: list[Option], most: int) -> list[Option]:
    """At most so many, evenly from the whole range, the uniform one (the first) always."""
    if len(options) <= most:
        return options
    rest = sorted(options[1:], key=lambda option: option[1])
    return [options[0], *(rest[round(k * (len(rest) - 1) / max(most - 2, 1))] for k in range(most - 1))]


def choose(shares: Floats, count: int, first: int) -> list[int]:
    """Rows of a D-optimal design of a line in the shares: the largest det(F'F), `first` among them, none twice.

    Fedorov's exchange from several greedy starts (Fedorov 1972): swap one row for the best other one while the determinant grows.
    """
    count = min(count, len(shares))
    rng = np.random.default_rng(0)
    designs = [_exchanged(shares, _greedy(shares, [first, *rng.permutation(np.delete(np.arange(len(shares)), first))[:start]], count))
               for start in range(min(count, 4))]
    best = max(designs, key=lambda rows: _log_determinant(shares[rows]))
    return [first, *sorted(row for row in best if row != first)]


def _information(rows: Floats) -> Floats:
    return np.asarray(rows.T @ rows + _RIDGE * np.eye(rows.shape[1]))


def _log_determinant(rows: Floats) -> float:
    return float(np.linalg.slogdet(_information(rows))[1])


def _greedy(shares: Floats, rows: Sequence[int], count: int) -> list[int]:
    rows = [int(row) for row in rows][:count]
    while len(rows) < count:
        rows.append(_best_addition(shares, rows))
    return rows


def _best_addition(shares: Floats, rows: Sequence[int]) -> int:
    """The row that enlarges the determinant most: det(M + xx') = det(M)·(1 + x'M⁻¹x)."""
    gains = np.einsum("ij,jk,ik->i", shares, np.linalg.inv(_information(shares[list(rows)])), shares)
    gains[list(rows)] = -np.inf
    return int(np.argmax(gains))


def _exchanged(shares: Floats, rows: list[int]) -> list[int]:
    """Rows after exchanges that no single further one improves; the first stays."""
    value, moved = _log_determinant(shares[rows]), True
    while moved:
        moved = False
        for place in range(1, len(rows)):
            others = rows[:place] + rows[place + 1:]
            if len(shares) == len(rows):
                break
            trial = [*others[:place], _best_addition(shares, others), *others[place:]]
            if (better := _log_determinant(shares[trial])) > value + 1e-9:
                rows, value, moved = trial, better, True
    return rows
