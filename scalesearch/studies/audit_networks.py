"""The networks of a proxy audit: spread over the window, and the baseline changed in one direction at a time.

What a proxy favours shows in networks that differ much, so draws are chosen far apart in cost, depth,
width and kernel; and the baseline is made deeper, wider and of higher resolution at about its own
cost, which asks each question directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scalesearch.architecture import Architecture, blocks
from scalesearch.cost import cost_of
from scalesearch.scaling import ScalingRule
from scalesearch.spaces import Space
from scalesearch.spaces.feasible import FeasibleSet

# Draws from which the ones far apart are chosen.
STREAM = 1  # of random draws, beside the sampler's own from the same seed
POOL = 200
# A variant of the baseline may cost so much more or less than it.
TOLERANCE = 0.15
# What grows, by how much (the first that fits is taken), and what shrinks so that the cost stays.
DIRECTIONS = (("deeper", "depth", "width", (2.0, 1.5, 1.25)),
              ("wider", "width", "depth", (1.5, 1.35, 1.25)),
              ("higher resolution", "resolution", "width", (1.5, 1.35, 1.25, 1.15)))

Fits = Callable[[Architecture], bool]


@dataclass(frozen=True)
class Listed:
    """A network of the audit and what it is there for: baseline, deeper, wider, higher resolution, draw."""

    role: str
    architecture: Architecture


@dataclass(frozen=True, slots=True)
class Factors:
    """What a proxy may lean with. Depth: layers in all. Width: channels × expansion, kernel: side, means over layers. Resolution in px."""

    depth: float
    width: float
    resolution: float
    kernel: float
    cost: float


def factors_of(architecture: Architecture) -> Factors:
    """
    >>> from scalesearch.architecture import load_architecture
    >>> factors_of(load_architecture("efficientnet_b0")).depth
    16
    """
    stages = architecture.stages
    depth = sum(stage.layers for stage in stages)
    width = sum(stage.layers * stage.channels * stage.expansion for stage in stages) / depth
    kernel = sum(stage.layers * stage.kernel for stage in stages) / depth
    return Factors(depth, width, architecture.resolution, kernel, cost_of(architecture).macs)


def audit_networks(space: Space, feasible: FeasibleSet, count: int, seed: int = 0, variants: bool = True,
                   fits: Fits = lambda network: True) -> list[Listed]:
    """`count` distinct networks: the baseline, its variants of about equal cost, and draws from the window far apart.

    fits    whether a network can be evaluated; variants that cannot are left out, draws take their place
    """
    chosen = [Listed("baseline", space.baseline), *(equal_cost_variants(space.baseline, fits) if variants else ())][:count]
    return chosen + spread_draws(space, feasible, count - len(chosen), seed, [listed.architecture for listed in chosen])


def equal_cost_variants(baseline: Architecture, fits: Fits = lambda network: True) -> list[Listed]:
    """The baseline deeper, wider and of higher resolution, each at its cost within 15 %, where its rounding allows that."""
    wanted, found = cost_of(baseline).macs, []
    for role, grows, shrinks, steps in DIRECTIONS:
        options = (_nearest(baseline, wanted, grows, shrinks, step, fits) for step in steps)
        network = next((option for option in options if option is not None), None)
        if network is not None:
            found.append(Listed(role, network.replace(name=f"{baseline.name or baseline.id} {role}")))
    return found


def _nearest(baseline: Architecture, wanted: int, grows: str, shrinks: str, step: float, fits: Fits) -> Architecture | None:
    """`grows` times `step`, `shrinks` by what brings the cost nearest; None where that is not near, or nothing grew."""
    best = min(_shrunk(baseline, grows, shrinks, step), key=lambda n: abs(cost_of(n).macs / wanted - 1))
    near = abs(cost_of(best).macs / wanted - 1) <= TOLERANCE
    grew = getattr(factors_of(best), grows) > 1.1 * getattr(factors_of(baseline), grows)
    return best if near and grew and fits(best) else None


def _shrunk(baseline: Architecture, grows: str, shrinks: str, step: float) -> Iterator[Architecture]:
    seen: set[str] = set()
    for percent in range(30, 101):
        factors = {"depth": 1.0, "width": 1.0, "resolution": 1.0, grows: step, shrinks: percent / 100}
        network = ScalingRule().scale(baseline, factors["depth"], factors["width"], round(factors["resolution"] * baseline.resolution))
        if network.id not in seen:
            seen.add(network.id)
            yield network


def spread_draws(space: Space, feasible: FeasibleSet, count: int, seed: int, taken: Sequence[Architecture]) -> list[Listed]:
    """Uniform draws of which each next one is the farthest from all taken before, in standardised log factors."""
    if count < 1:
        return []
    known = {blocks(network) for network in taken}
    pool: list[Architecture] = []
    for values in feasible.random_draws(np.random.default_rng([seed, STREAM]), POOL):
        network = space.decode(values)
        if blocks(network) not in known:
            known.add(blocks(network))
            pool.append(network)
    rows = np.array([_coordinates(network) for network in (*taken, *pool)]).reshape(len(taken) + len(pool), -1)
    deviation = rows[len(taken):].std(axis=0) if pool else np.ones(rows.shape[1])
    rows = rows / np.where(deviation > 1e-9, deviation, np.inf)  # what the draws share does not part them
    left, chosen = list(range(len(taken), len(rows))), list(range(len(taken)))
    while left and len(chosen) < len(taken) + count:
        distances = [min((float(np.linalg.norm(rows[i] - rows[j])) for j in chosen), default=math.inf) for i in left]
        chosen.append(left.pop(int(np.argmax(distances))))
    return [Listed("draw", pool[i - len(taken)]) for i in chosen[len(taken):]]


def _coordinates(network: Architecture) -> list[float]:
    factors = factors_of(network)
    return [math.log(value) for value in (factors.depth, factors.width, factors.kernel, factors.cost)]
