"""The space of scaling coefficients: depth α^φ, width β^φ and resolution γ^φ of one base network.

Layers round up, channels go to multiples of 8 and pixels are whole, so many triples (α, β, γ) build
the same network, and α·β²·γ² says little about what it costs: on EfficientNet-B0 the triples with a
product of about 2 cost 1.93 to 3.33 times as much. So all triples are enumerated, grouped by the
network they build, and costed by what it really is. Depth, width and resolution round separately;
hence the distinct networks are all combinations of the few distinct depths, widths and resolutions,
and 100,000 triples cost no more than those few thousand.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scalesearch.architecture import Architecture, blocks, load_architecture
from scalesearch.config import to_mapping
from scalesearch.cost import Cost, block_cost, cost_of
from scalesearch.errors import ConfigError, SpaceError, unknown
from scalesearch.scaling import load_rule
from scalesearch.spaces.parameters import Parameter, check_values, combinations, describe

Constraint = Literal["realised", "nominal"]
Dimension = Literal["depth", "width", "resolution"]
Triple = tuple[float, float, float]

# Enumerated at most; beyond it the step is too fine to mean anything.
MOST_TRIPLES = 20_000_000

# Distance of neighbouring coefficients of the dimension that is solved for: less than a pixel, a layer, 8 channels.
SOLVED_STEP = 0.001
SOLVED = {"depth": "alpha", "width": "beta", "resolution": "gamma"}

# φ up or down to which a grid is built: 2^10 is a thousand times the base's cost.
FARTHEST_PHI = 10.0

# Looked at for advice, which should come at once.
MOST_ALTERNATIVES = 3_000_000


@dataclass(frozen=True)
class ScaledNetwork:
    """A network and every triple (α, β, γ) of the grid that builds it; `ratio` is its cost in base networks."""

    coefficients: tuple[Triple, ...]
    architecture: Architecture
    cost: Cost
    ratio: float


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another setting of the grid (`step` or `tolerance`) and the distinct networks it would give."""

    setting: str
    value: float
    networks: int

    def __str__(self) -> str:
        return f"{self.setting}={self.value:g} gives {self.networks}"


class CompoundSpace:
    """α, β and γ on a grid of whole steps: `1.15` is exactly 1.15.

    base                 a preset, a file or an Architecture
    step                 distance of neighbouring coefficients
    alpha, beta, gamma   first and last coefficient of depth, width and resolution
    phi                  networks are built at α^φ, β^φ, γ^φ
    rule                 what is scaled: compound, lite (stem, head and ends fixed), v2, resnet
    solve                depth, width or resolution: its coefficient is no grid but solved for each pair of the
                         other two, to a thousandth, so that the cost is as near the target as it can be

    `size` is the number of distinct networks.

    >>> space = CompoundSpace()
    >>> space.decode({"alpha": 1.2, "beta": 1.1, "gamma": 1.15}).resolution
    258
    """

    name = "compound"

    def __init__(self, base: Architecture | str = "efficientnet_b0", step: float = 0.05, alpha: tuple[float, float] = (1.0, 2.0),
                 beta: tuple[float, float] = (1.0, 1.5), gamma: tuple[float, float] = (1.0, 1.5), phi: float = 1.0,
                 rule: str = "compound", solve: Dimension | None = None) -> None:
        if solve is not None and solve not in SOLVED:
            raise ConfigError(unknown("dimension to solve for", str(solve), SOLVED))
        if not abs(phi) <= FARTHEST_PHI:
            raise ConfigError(f"phi={phi:.10g}: networks of 2^φ times the base's cost; write a φ from {-FARTHEST_PHI:g} to "
                              f"{FARTHEST_PHI:g}, such as 1")
        self.baseline = load_architecture(base)
        self.step, self.phi, self.solve = step, phi, solve
        self._rule_name, self._rule = rule, load_rule(rule)
        self._ranges = {"alpha": alpha, "beta": beta, "gamma": gamma}
        steps = {name: SOLVED_STEP if solve and name == SOLVED[solve] else step for name in self._ranges}
        self.parameters = tuple(Parameter(name, _steps(name, *ends, steps[name])) for name, ends in self._ranges.items())
        if combinations(self.parameters) > MOST_TRIPLES:
            raise ConfigError(f"space.step={step:g}: {combinations(self.parameters):,} triples; choose a step that gives at most "
                              f"{MOST_TRIPLES:,}")

    @property
    def target_ratio(self) -> float:
        """2^φ: the cost that the coefficients should multiply the base's by."""
        return float(2.0**self.phi)

    @property
    def size(self) -> int:
        return self._macs.size

    def decode(self, values: Mapping[str, Any]) -> Architecture:
        """The base scaled by (α, β, γ) at φ."""
        check_values(self.name, self.parameters, values)
        return self._scaled(float(values["alpha"]), float(values["beta"]), float(values["gamma"]))

    def encode(self, architecture: Architecture) -> dict[str, float]:
        """The first triple of the grid that builds this network."""
        wanted = (_depths(architecture), _channels(architecture), architecture.resolution)
        if all(outcome in axis.outcomes for axis, outcome in zip(self._axes, wanted, strict=True)):
            values = self._first([axis.outcomes.index(outcome) for axis, outcome in zip(self._axes, wanted, strict=True)])
            if self.decode(values) == architecture:
                return values
        raise SpaceError(f"{architecture.name or 'architecture'} is not in space {self.name}: "
                         f"no triple of the grid scales {self.baseline.name} to it at φ = {self.phi:g}")

    def listing(self) -> Iterator[tuple[dict[str, float], int]]:
        """Values and multiply-adds of every distinct network."""
        for position in itertools.product(*map(range, self._macs.shape)):
            yield self._first(position), int(self._macs[position])

    def networks(self, constraint: Constraint = "realised", tolerance: float = 0.05) -> list[ScaledNetwork]:
        """The distinct networks that a grid search trains, cheapest first.

        realised   those whose multiply-adds are 2^φ times the base's, within ± `tolerance` of that
        nominal    those of the triples with |α·β²·γ² - 2| <= `tolerance`: the paper's own grid

        With `solve`, of each pair of the other two coefficients only the triple that is nearest to the
        constraint; of triples that build the same network the one with α·β²·γ² nearest to 2.

        >>> [len(CompoundSpace(step=0.1, solve=solve).networks(tolerance=0.01)) for solve in (None, "resolution")]
        [0, 6]
        """
        chosen = self._chosen(constraint, tolerance)
        groups: dict[int, list[Triple]] = defaultdict(list)
        for owner, position in zip(self._owners[chosen].tolist(), np.argwhere(chosen).tolist(), strict=True):
            groups[owner].append(self._triple(position))
        found = [self._scaled_network(tuple(triples)) for triples in groups.values()]
        return sorted(found, key=lambda scaled: (scaled.cost.macs, scaled.coefficients))

    def count(self, constraint: Constraint = "realised", tolerance: float = 0.05) -> tuple[int, int]:
        """How many triples and how many distinct networks `networks` would give."""
        chosen = self._chosen(constraint, tolerance)
        return int(chosen.sum()), len(np.unique(self._owners[chosen]))

    def alternatives(self, constraint: Constraint = "realised", tolerance: float = 0.05) -> list[Alternative]:
        """Smaller steps and wider tolerances with the distinct networks each gives, nearest to the present setting first."""
        finer = [float(Decimal(str(self.step)) / part) for part in (2, 5, 10)]
        wider = [float(Decimal(str(tolerance)) * part) for part in (2, 3, 4)]
        triples = math.prod((last - first) / self.step + 1 for first, last in self._ranges.values())
        finer = [step for step in finer if triples * (self.step / step) ** 3 <= MOST_ALTERNATIVES]
        return [*(Alternative("step", step, self._with(step=step).count(constraint, tolerance)[1]) for step in finer),
                *(Alternative("tolerance", width, self.count(constraint, width)[1]) for width in wider)]

    def to_mapping(self) -> dict[str, Any]:
        """A JSON-able description."""
        return {"name": self.name, "baseline": to_mapping(self.baseline), "step": self.step, "phi": self.phi,
                "rule": self._rule_name, "solve": self.solve, "size": self.size, "parameters": describe(self.parameters)}

    def _with(self, **changes: Any) -> CompoundSpace:
        own = {"base": self.baseline, "step": self.step, "phi": self.phi, "rule": self._rule_name, "solve": self.solve}
        return CompoundSpace(**{**own, **self._ranges, **changes})

    def _scaled(self, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0) -> Architecture:
        return replace(self._rule, depth=alpha, width=beta, resolution=gamma)(self.baseline, self.phi)

    def _scaled_network(self, coefficients: tuple[Triple, ...]) -> ScaledNetwork:
        network = self._scaled(*coefficients[0])
        cost = cost_of(network)
        return ScaledNetwork(coefficients, network, cost, cost.macs / cost_of(self.baseline).macs)

    def _first(self, position: Sequence[int]) -> dict[str, float]:
        """Values of the first triple that gives these outcomes of depth, width and resolution."""
        return self._values([axis.firsts[p] for axis, p in zip(self._axes, position, strict=True)])

    def _values(self, positions: Sequence[int]) -> dict[str, float]:
        return {parameter.name: parameter.choices[p] for parameter, p in zip(self.parameters, positions, strict=True)}

    def _triple(self, positions: Sequence[int]) -> Triple:
        alpha, beta, gamma = self._values(positions).values()
        return alpha, beta, gamma

    def _chosen(self, constraint: Constraint, tolerance: float) -> NDArray[np.bool_]:
        """Which triples of the grid are inside, (α, β, γ)."""
        off = np.abs(self._products - 2.0) if constraint == "nominal" else self._off_target[self._owners]
        # The ends belong to the window: 1.9 must count as within 0.1 of 2 in floating point too.
        inside = off <= tolerance + 1e-9
        if self.solve is None:
            return np.asarray(inside)
        axis = list(SOLVED).index(self.solve)
        # Triples of one network are equally far off: the tiny second term picks one of them.
        nearest = (off + 1e-9 * np.abs(self._products - 2.0)).argmin(axis=axis, keepdims=True)
        return np.asarray(inside & (np.arange(off.shape[axis]).reshape([-1 if k == axis else 1 for k in range(3)]) == nearest))

    @property
    def _products(self) -> NDArray[np.float64]:
        """α·β²·γ² of every triple."""
        alpha, beta, gamma = np.ix_(*(np.array(parameter.choices) for parameter in self.parameters))
        return np.asarray(alpha * beta**2 * gamma**2)

    @property
    def _off_target(self) -> NDArray[np.float64]:
        """Relative distance of every distinct network's cost from 2^φ times the base's, flattened."""
        return np.asarray(np.abs(self._macs.reshape(-1) / (cost_of(self.baseline).macs * self.target_ratio) - 1.0))

    @functools.cached_property
    def _owners(self) -> NDArray[np.int64]:
        """For each triple the network it builds, as a position in the flattened costs."""
        depth, width, resolution = np.ix_(*(axis.classes for axis in self._axes))
        return np.asarray(np.ravel_multi_index((depth, width, resolution), self._macs.shape), dtype=np.int64)

    @functools.cached_property
    def _axes(self) -> tuple[_Axis, _Axis, _Axis]:
        """What each coefficient makes of the base: layers per stage, channels, pixels."""
        alphas, betas, gammas = (parameter.choices for parameter in self.parameters)
        return (_Axis.of([_depths(self._scaled(alpha=alpha)) for alpha in alphas]),
                _Axis.of([_channels(self._scaled(beta=beta)) for beta in betas]),
                _Axis.of([self._scaled(gamma=gamma).resolution for gamma in gammas]))

    @functools.cached_property
    def _macs(self) -> NDArray[np.int64]:
        """Multiply-adds of every distinct depth, width and resolution together."""
        depth, width, resolution = self._axes
        widths = [self._scaled(beta=self.parameters[1].choices[first]) for first in width.firsts]
        return _combined(widths, np.array(depth.outcomes), resolution.outcomes)


@dataclass(frozen=True)
class _Axis:
    """The distinct outcomes of one coefficient: `classes` has one for each of its choices, `firsts` the first choice of each."""

    outcomes: list[Any]
    classes: NDArray[np.int64]
    firsts: list[int]

    @classmethod
    def of(cls, rows: list[Any]) -> _Axis:
        outcomes = list(dict.fromkeys(rows))
        return cls(outcomes, np.array([outcomes.index(row) for row in rows]), [rows.index(outcome) for outcome in outcomes])


def _combined(widths: Sequence[Architecture], depths: NDArray[np.int64], resolutions: Sequence[int]) -> NDArray[np.int64]:
    """Multiply-adds (depths, widths, resolutions): a stage's first layer once and its second as often as it repeats.

    The sizes of the feature maps follow from the resolution alone, so a block of one width is costed
    once for each size that it meets.
    """
    first = np.zeros((len(widths), len(resolutions)), np.int64)
    again = np.zeros((len(widths), len(resolutions), depths.shape[1]), np.int64)
    one = _two_layers(widths[0])
    sizes = [[(block.size_in, block.size_out) for block in blocks(one.replace(resolution=resolution))] for resolution in resolutions]
    for w, architecture in enumerate(widths):
        for block, met in zip(blocks(_two_layers(architecture)), zip(*sizes, strict=True), strict=True):
            costs = {size: block_cost(block._replace(size_in=size[0], size_out=size[1])).macs for size in set(met)}
            if block.layer == 1:
                first[w] += [costs[size] for size in met]
            else:
                again[w, :, block.stage - 1] = [costs[size] for size in met]
    return first + np.moveaxis(again @ (depths - 1).T, -1, 0)


def _two_layers(architecture: Architecture) -> Architecture:
    return architecture.replace(stages=tuple(replace(stage, layers=2) for stage in architecture.stages))


def _depths(architecture: Architecture) -> tuple[int, ...]:
    return tuple(stage.layers for stage in architecture.stages)


def _channels(architecture: Architecture) -> tuple[int, ...]:
    return (architecture.stem.channels, *(stage.channels for stage in architecture.stages), architecture.head.channels)


def _steps(name: str, first: float, last: float, step: float) -> tuple[float, ...]:
    """first, first + step, … up to last, in decimal arithmetic so that each is the number that is printed."""
    start, end, distance = (Decimal(str(number)) for number in (first, last, step))
    if not distance > 0:
        raise ConfigError(f"space.step={step:g}: a step is above 0")
    if not 0 < start <= end:
        raise ConfigError(f"space.{name}={first:g},{last:g}: write the first and the last coefficient, both above 0")
    return tuple(float(start + k * distance) for k in range(int((end - start) / distance) + 1))


