"""Depth that differs between stages: how a budget of layers is best spread over the stages of a network.

Compound scaling multiplies the layers of every stage by the same α^φ. Here the network that it found is
kept in width and resolution, and its layers are moved between contiguous groups of stages at the same
realised cost:

    design    of all such networks in the cost window, the few that tell the groups apart best (D-optimal:
              the largest determinant of the information matrix), the uniform network among them
    fit       mean accuracy = level + Σ slope_g · share_g, by ridge regression, where share_g is the part of
              the stages' multiply-adds that group g takes: shares add up to 1, so only differences count
    answer    the network of the window with the best prediction, its depth coefficients, and its gain over
              the uniform one with an interval that holds for every such network at once (Scheffé), because
              it was picked from the same numbers. Where the interval holds 0 the two are tied

A share can only be moved, not added; the line is trusted inside the window of networks and no further.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from scalesearch.analysis import two_way
from scalesearch.architecture import Architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.scaling import ScalingRule, round_layers
from scalesearch.studies.stage_window import Floats, Window, choose, find_window, free_stages

Evaluate = Callable[[Sequence[Architecture], Sequence[int]], Mapping[str, Sequence[float | None]]]
"""(networks, seeds) → accuracy of each network's id at each of these seeds, in order; None where a training failed."""


@dataclass(frozen=True, slots=True)
class StagePoint:
    """A network of the design or the answer.

    layers        of every stage
    multipliers   nominal depth multiplier of each group, at φ
    shares        of the stages' multiply-adds, by group; they add up to 1
    cost_ratio    realised cost in units of the target
    accuracies    one a seed, None where it failed; () for a network that was not trained
    predicted     by the line, a fraction
    """

    id: str
    layers: tuple[int, ...]
    multipliers: tuple[float, ...]
    shares: tuple[float, ...]
    cost_ratio: float
    accuracies: tuple[float | None, ...] = ()
    predicted: float | None = None


@dataclass(frozen=True, slots=True)
class NonUniform:
    """What the layers' distribution is worth; `to_mapping` and `from_mapping` make it JSON and back.

    groups        stage numbers, from 1
    networks      trained ones, the uniform network first
    candidates    distinct networks in the window, ± `tolerance` of the target
    slopes        accuracy gained where a tenth of the stages' multiply-adds goes to this group, from the others in
                  proportion; a fraction, with its interval
    best          the network with the best prediction
    gain          of `best` over the uniform network, predicted; `interval` holds with `confidence` although it was picked
    stage_depths  depth coefficients of `best`, one a stage
    rule          the recommended one: with `stage_depths` where the gain's interval is above 0, else the rule that was given
    verdict       gain · tied (the interval holds 0) · unknown (too few trainings; `note` says why)
    """

    phi: float
    groups: tuple[tuple[int, ...], ...]
    networks: tuple[StagePoint, ...]
    candidates: int
    tolerance: float
    confidence: float
    slopes: tuple[float, ...]
    slope_intervals: tuple[tuple[float, float], ...]
    best: StagePoint
    gain: float | None
    interval: tuple[float, float] | None
    stage_depths: tuple[float, ...]
    rule: ScalingRule
    verdict: Literal["gain", "tied", "unknown"]
    note: str


def fit_stage_depths(base: Architecture, network: Architecture, rule: ScalingRule, phi: float, groups: int, evaluate: Evaluate, *,
                     seeds: Sequence[int], target: float | None = None, tolerance: float = 0.05, points: int | None = None,
                     slope: float | None = None, confidence: float = 0.95) -> NonUniform:
    """Spread the layers of `network` over `groups` groups of stages in several ways, train these, and say what it is worth.

    base        the network that was scaled; `network` the best of its grid at `phi` by `rule` (its width and resolution are kept)
    evaluate    trains networks at seeds; it is called once, with the design, the uniform network first
    target      multiply-adds of all networks, within ± `tolerance`; None: those of `network`
    points      networks that are trained; None: 2·groups + 2
    slope       accuracy per doubling of cost, by which what is off the target is corrected; None: not corrected

    ConfigError where the base has fewer stages than groups; BudgetError where the window, also three times as wide,
    holds too few networks.
    """
    check(base, network, rule, phi, groups)
    count = points or 2 * groups + 2
    window = find_window(base, network, rule, phi, groups, target or cost_of(network).macs, tolerance, count)
    chosen = choose(window.shares, count, first=window.uniform)
    networks = [window.network(row) for row in chosen]
    accuracies = evaluate(networks, seeds)
    measured = [tuple(accuracies.get(one.id, ())) or (None,) * len(seeds) for one in networks]
    corrected = [_corrected(row, ratio, slope) for row, ratio in zip(measured, window.ratios[chosen].tolist(), strict=True)]
    line = fit_line(window.shares[chosen], corrected, confidence)
    return _answer(base, rule, phi, window, chosen, measured, line, confidence)


def check(base: Architecture, network: Architecture, rule: ScalingRule, phi: float, groups: int) -> None:
    """ConfigError where layers cannot be spread over so many groups, or the network is not the rule's."""
    free = len(free_stages(base, rule))
    if not 2 <= groups <= free:
        raise ConfigError(f"stages={groups}: the layers of {free} stages of {base.name or 'the base'} are scaled; write stages=2 to "
                          f"{free}, or stages=1 for uniform depth")
    if phi == 0:
        raise ConfigError("phi=0: depth is not scaled there; write phi=1")
    if [stage.layers for stage in rule(base, phi).stages] != [stage.layers for stage in network.stages]:
        raise ConfigError(f"{network.name or 'the network'} has other layers than {base.name or 'the base'} at phi={phi:g} of this rule")


def _answer(base: Architecture, rule: ScalingRule, phi: float, window: Window, chosen: Sequence[int],
            measured: Sequence[tuple[float | None, ...]], line: Line | None, confidence: float) -> NonUniform:
    """The best of the window by the line; without a line the uniform network and no verdict."""
    start, count = window.shares[window.uniform], len(window.shares)
    gains = [float(line.slopes @ (row - start)) for row in window.shares] if line else [0.0] * count
    best = min(range(count), key=lambda row: (-round(gains[row], 9), window.distances[row])) if line else window.uniform
    level = None if line is None else line.level + float(line.slopes @ start)

    def point(row: int, accuracies: tuple[float | None, ...] = ()) -> StagePoint:
        return StagePoint(window.network(row).id, tuple(window.layers[row].tolist()), tuple(window.multipliers[row].tolist()),
                          tuple(window.shares[row].tolist()), float(window.ratios[row]), accuracies,
                          None if level is None else level + gains[row])

    depths = stage_depths(base, rule, phi, window, best)
    moves = [_a_tenth(start, g) for g in range(len(window.groups))]
    slopes = tuple(float(move @ line.slopes) for move in moves) if line else ()
    interval = line.interval(window.shares[best] - start, gains[best]) if line else None
    verdict: Literal["gain", "tied", "unknown"] = "unknown" if interval is None else "gain" if interval[0] > 0 else "tied"
    return NonUniform(
        phi=phi, groups=tuple(tuple(i + 1 for i in group) for group in window.groups),
        networks=tuple(point(row, own) for row, own in zip(chosen, measured, strict=True)), candidates=count,
        tolerance=window.tolerance, confidence=confidence, slopes=slopes,
        slope_intervals=tuple(line.interval(move, own) for move, own in zip(moves, slopes, strict=True)) if line else (),
        best=point(best), gain=gains[best] if line else None, interval=interval, stage_depths=depths,
        rule=replace(rule, late_depth=None, stage_depths=depths) if verdict == "gain" else rule, verdict=verdict,
        note=_note(verdict, len(chosen), gains[best], interval, confidence, line))


@dataclass(frozen=True)
class Line:
    """mean = level + shares · slopes, shrunk; `covariance` is that of the unshrunk slopes.

    reach   standard errors within which all differences of shares hold together (Scheffé)
    """

    level: float
    slopes: Floats
    covariance: Floats
    reach: float
    deviation: float
    degrees: int

    def interval(self, move: Floats, value: float) -> tuple[float, float]:
        """Of a move of shares (the parts add up to 0), about its shrunk value; as wide as without shrinkage."""
        half = self.reach * math.sqrt(max(float(move @ self.covariance @ move), 0.0))
        return value - half, value + half


def fit_line(shares: Floats, accuracies: Sequence[Sequence[float | None]], confidence: float = 0.95) -> Line | None:
    """Ridge regression of the networks' mean accuracies on their shares; None where nothing is left to tell the noise from.

    Seeds' own effects are removed first. The noise is what the means keep off the line, so networks that
    the line does not fit widen the intervals as seeds do. How much to shrink is found by the marginal
    likelihood of slopes drawn from a normal distribution.
    """
    from scipy.stats import f

    width = max(map(len, accuracies), default=0)
    table = np.array([[math.nan if a is None else a for a in row] + [math.nan] * (width - len(row)) for row in accuracies], dtype=float)
    there = np.isfinite(table).any(axis=1) if width else np.zeros(0, dtype=bool)
    if there.sum() < shares.shape[1] + 1:
        return None
    means, rows = two_way(table[there]).means, shares[there]
    centred, y = rows - rows.mean(axis=0), means - means.mean()
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    kept = sizes > 1e-6 * max(sizes[0], 1e-6)
    left, sizes, right = left[:, kept], sizes[kept], right[kept]
    rank, degrees = len(sizes), len(y) - 1 - int(kept.sum())
    if rank < shares.shape[1] - 1 or degrees < 1:
        return None
    along = left.T @ y
    rest = max(float(y @ y - along @ along), 0.0)
    strength = _strength(sizes, along, rest, len(y) - 1)
    slopes = right.T @ (along * sizes * strength / (1 + strength * sizes**2))
    variance = rest / degrees
    return Line(float(means.mean() - rows.mean(axis=0) @ slopes), slopes, variance * (right.T / sizes**2) @ right,
                math.sqrt(rank * float(f.ppf(confidence, rank, degrees))), math.sqrt(variance), degrees)


def _strength(sizes: Floats, along: Floats, rest: float, degrees: int) -> float:
    """Variance of the slopes in units of the noise's, where the marginal likelihood is highest; never quite 0, to keep a direction."""
    grid = np.geomspace(1e-3, 1e6, 181) / float((sizes**2).mean())
    spread = 1 + grid[:, None] * sizes**2
    squares = np.maximum((along**2 / spread).sum(axis=1) + rest, 1e-30)
    return float(grid[np.argmax(-0.5 * (np.log(spread).sum(axis=1) + degrees * np.log(squares)))])


def stage_depths(base: Architecture, rule: ScalingRule, phi: float, window: Window, row: int) -> tuple[float, ...]:
    """Depth coefficients that build the layers of a row at φ, in as few digits as do."""
    wanted, found = window.layers[row].tolist(), list(rule.depths(base, 1.0))
    for part, multiplier in zip(window.groups, window.multipliers[row], strict=True):
        for i in part:
            exact = found[i] * float(multiplier) ** (1 / phi)
            layers = base.stages[i].layers
            found[i] = found[i] if multiplier == 1 else next(
                (short for digits in (2, 3, 4, 6) if (short := round(exact, digits)) > 0 and round_layers(layers, short**phi) == wanted[i]),
                exact)
    return tuple(found)


def _corrected(row: Sequence[float | None], ratio: float, slope: float | None) -> list[float | None]:
    """Accuracies at exactly the target cost."""
    return [None if a is None else a - (slope or 0.0) * math.log2(ratio) for a in row]


def _a_tenth(shares: Floats, group: int) -> Floats:
    """A tenth of the whole to this group, from the others in proportion to what they have."""
    move = -0.1 * shares / (1 - shares[group])
    move[group] = 0.1
    return np.asarray(move)


def _note(verdict: str, networks: int, gain: float, interval: tuple[float, float] | None, confidence: float, line: Line | None) -> str:
    if interval is None or line is None:
        return f"{networks} networks, too few of them trained, leave nothing to tell the noise from"
    said = (f"{100 * gain:+.2f} points over uniform depth, {confidence:.0%} interval {100 * interval[0]:+.2f} to {100 * interval[1]:+.2f} "
            f"(Scheffé, {networks} networks, {line.degrees} degrees of freedom)")
    return f"depth by stage is tied with uniform depth: {said}" if verdict == "tied" else f"depth by stage pays: {said}"
