"""The stock baseline at another network's cost, so that the two can be compared.

Compound scaling by a fractional or negative φ; rounding makes its cost a staircase in φ, so where no
step comes near enough depth, width and resolution move a little of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from scalesearch.architecture import Architecture
from scalesearch.cost import cost_of
from scalesearch.errors import BudgetError, ConfigError
from scalesearch.scaling import RULES, ScalingRule

# As near as this is equal: a hundredth of the cost is worth some hundredths of a point.
EQUAL = 0.01
# φ beyond which nothing is tried; ±12 is a factor of 4,096.
FARTHEST = 12.0

CostOf = Callable[[Architecture], float]


# Networks that are measured to find one of a measured cost.
MEASUREMENTS = 4


@dataclass(frozen=True, slots=True)
class Scaled:
    """A base at a cost: nominal multipliers of layers and channels, pixels, and what it costs as built.

    phi     of the rule; the multipliers are the rule's own at φ unless `moved`
    depth   of all layers together where the rule's stages differ
    cost    realised, `target` the cost asked for, `ratio` cost / target
    """

    phi: float
    depth: float
    width: float
    resolution: int
    moved: bool
    cost: float
    target: float
    architecture: Architecture = field(repr=False)

    @property
    def ratio(self) -> float:
        return self.cost / self.target


def scale_to_cost(base: Architecture, target: float, rule: ScalingRule = RULES["compound"], *, cost: CostOf | None = None,
                  accepts: Callable[[Architecture], bool] = lambda _: True) -> Scaled:
    """The base scaled so that its realised cost is nearest to `target`: `base` itself where that is its cost.

    `cost` is multiply-adds unless given; it should not fall as a network grows. `accepts` refuses networks that
    cannot be evaluated. BudgetError where φ from -12 to 12 builds nothing acceptable.

    >>> from scalesearch.architecture import load_architecture
    >>> found = scale_to_cost(load_architecture("efficientnet_b0"), 992_629_472)
    >>> found.phi, found.ratio, found.moved
    (1.0, 1.0, False)
    """
    price: CostOf = cost or (lambda network: cost_of(network).macs)
    steps = [step for phi in _around(rule, base, target, price) if (step := _at(rule, base, phi, target, price)) is not None]
    steps = [step for step in steps if accepts(step.architecture)]
    near = min(steps, key=_off, default=None)
    if near is None:
        raise BudgetError(f"{base.name} cannot be scaled to a cost of {target:,.0f}: no φ from {-FARTHEST:g} to {FARTHEST:g} gives a "
                          "network that can be evaluated")
    if _off(near) <= EQUAL:
        return near
    for step in _moved(rule, base, target, price):
        if _off(step) < _off(near) and accepts(step.architecture):
            near = step
            if _off(near) <= EQUAL:
                break
    return near


def scale_by_measuring(base: Architecture, target: float, like: Architecture, measured: CostOf, rule: ScalingRule = RULES["compound"], *,
                       accepts: Callable[[Architecture], bool] = lambda _: True) -> Scaled:
    """The base scaled to a cost that only a measurement tells; `like` is a network of that cost.

    Scaled to its multiply-adds, measured, and scaled again to as many more or fewer: a measurement
    each, of networks of about the right size.
    """
    wanted, near = float(cost_of(like).macs), None
    for _ in range(MEASUREMENTS):
        step = scale_to_cost(base, wanted, rule, accepts=accepts)
        step = replace(step, cost=measured(step.architecture), target=target)
        near = step if near is None or _off(step) < _off(near) else near
        if _off(near) <= EQUAL:
            break
        wanted *= target / step.cost
    assert near is not None
    return near


def _off(step: Scaled) -> float:
    return abs(step.ratio - 1.0)


def _around(rule: ScalingRule, base: Architecture, target: float, price: CostOf) -> list[float]:
    """0, and the φ of the steps of the staircase below and above the target."""

    def reaches(phi: float) -> bool:
        step = _at(rule, base, phi, target, price)
        return step is None or step.cost > target

    low, high = -FARTHEST, FARTHEST
    if reaches(low) or not reaches(high):
        return [0.0, low, high]
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    # A round φ on the same step reads better than its binary neighbour.
    rounded = [round(phi, digits) for digits in range(4) for phi in (low, high)]
    return [0.0, *rounded, low, high]


def _at(rule: ScalingRule, base: Architecture, phi: float, target: float, price: CostOf) -> Scaled | None:
    try:
        network = rule(base, phi)
    except ConfigError:  # larger than anything that can be built
        return None
    return Scaled(phi, rule.mean_depth(base, phi), rule.width**phi, network.resolution, False, price(network), target, network)


def _moved(rule: ScalingRule, base: Architecture, target: float, price: CostOf) -> Iterator[Scaled]:
    """Networks near the rule's nominal multipliers for this cost, the nearest first.

    Layers are rounded up, which costs more than the multiplier says, so depth moves further down than up.
    """
    phi = _nominal_phi(rule, base, target / price(base))
    if _at(rule, base, phi, target, price) is None:
        return
    depths, depth, width = rule.depths(base, phi), rule.mean_depth(base, phi), rule.width**phi
    pixels = max(1.0, rule.within(base, base.resolution * rule.resolution**phi))
    spread = max(1, round(0.02 * pixels))
    moves = [(share / 100, other / 100, offset) for share in range(-30, 10, 3) for other in range(-15, 16)
             for offset in range(-spread, spread + 1)]
    seen = set()
    for first, second, offset in sorted(moves, key=lambda move: (abs(move[0]) + 2 * abs(move[1]) + 2 * abs(move[2]) / pixels, move)):
        side = max(1, round(rule.within(base, round(pixels) + offset)))
        network = rule.scale(base, [own * (1 + first) for own in depths], width * (1 + second), side)
        if network.id not in seen:
            seen.add(network.id)
            yield Scaled(round(phi, 3), depth * (1 + first), width * (1 + second), network.resolution, True, price(network), target,
                         network)


def _nominal_phi(rule: ScalingRule, base: Architecture, ratio: float) -> float:
    """Where d·w²·r² is `ratio`; by bisection where stages differ in depth or resolution is capped, and it is no power of φ."""
    if rule.uniform and rule.largest is None:
        growth = rule.depth * rule.width**2 * rule.resolution**2
        return math.log(ratio) / math.log(growth) if growth > 1 else 0.0

    def nominal(phi: float) -> float:
        _, width, _ = rule.factors(phi)
        return rule.mean_depth(base, phi) * width**2 * (rule.pixels(base, phi) / base.resolution) ** 2

    low, high = -FARTHEST, FARTHEST
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if nominal(middle) >= ratio else (middle, high)
    return low
