"""What a sweep will train: each base scaled along each axis, to a cost or by a factor. No training here.

With `ratios` every network of a rung has the same realised cost, as near as rounding allows; with
`factors` the multipliers are literal and the costs are what they are, as in the paper's figures.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import convert
from scalesearch.cost import cost_of
from scalesearch.errors import BudgetError, ConfigError
from scalesearch.scaling import MOST, RULES, Proxy, ScalingRule, load_proxy
from scalesearch.studies import parts
from scalesearch.studies.equal_cost import scale_to_cost
from scalesearch.studies.published_scaling import published_rows, rounding_of, with_rounding
from scalesearch.studies.scale import rule_named
from scalesearch.studies.train import check_memory

# Axes that move one dimension; every other one is compared with the best of these.
SINGLE = ("depth", "width", "resolution")
BASELINE = "baseline"
# A stand-in by its width and depth.
PART = re.compile(r"[\d.]+x[\d.]+")
# Costs that differ by more are not compared, whatever the slope; the paper's tables, as built, differ by up to 1.31.
NEAR = 1.5
# A stand-in is not made smaller than this for the sake of images that are not enlarged.
FEWEST_PIXELS = 8


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """Settings of `sweep`; conf/sweep.yaml says what each means."""

    base: tuple[str, ...] = ("efficientnet_b0",)
    axis: tuple[str, ...] = (*SINGLE, "compound")
    ratios: tuple[float, ...] = (2.0, 4.0)
    factors: str | None = None
    bases: tuple[str, ...] | None = None
    published: Literal["figure3", "figure4", "table3", "table7"] | None = None
    train: bool = True
    proxy: str = "auto"
    resolution: int | None = None
    folds: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    confidence: float = 0.95
    workers: int | None = None
    name: str | None = None
    results: Path = Path("results")
    report: bool = True
    format: Literal["text", "json"] = "text"
    evaluator: Mapping[str, Any] = field(default_factory=lambda: {"name": "trained"})
    data: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None
    executor: Mapping[str, Any] = field(default_factory=lambda: {"name": "local"})


@dataclass(frozen=True, slots=True)
class Member:
    """A network of the sweep.

    axis, start    how it was scaled, and the (depth, resolution) multipliers that its base was given first
    depth, width, resolution   nominal multipliers of the base
    target         multiply-adds that it should have; None for literal multipliers that are compared with nothing
    moved          the multipliers are near the rule's own, not on it
    """

    axis: str
    start: tuple[float, float]
    depth: float
    width: float
    resolution: float
    target: float | None
    moved: bool
    macs: int
    architecture: Architecture = field(repr=False)

    @property
    def way(self) -> str:
        """The line that it belongs to: its axis, and where it starts from."""
        return self.axis if self.start == (1.0, 1.0) else f"{self.axis} from d={self.start[0]:g} r={self.start[1]:g}"


@dataclass(frozen=True, slots=True)
class BasePlan:
    """A base at the size at which it is trained, and what it is scaled to; the base itself is no member."""

    of: str
    proxy: str
    base: Architecture = field(repr=False)
    members: tuple[Member, ...]

    @property
    def macs(self) -> int:
        return cost_of(self.base).macs


@dataclass(frozen=True)
class SweepPlan:
    """Everything decided before the first training; `evaluator` None: nothing is trained."""

    bases: tuple[BasePlan, ...]
    evaluator: Any
    workers: int

    @property
    def networks(self) -> list[Architecture]:
        """The distinct scaled networks, the dearest first, so that no long one is left for the end."""
        found = {m.architecture.id: m for base in self.bases for m in base.members}
        return [m.architecture for m in sorted(found.values(), key=lambda m: -m.macs)]


def make_plan(settings: SweepSettings, evaluator: Any) -> SweepPlan:
    """Every base and its scaled networks; ConfigError for settings that make no sense together."""
    check(settings)
    bases = tuple(plan_base(name, settings, evaluator) for name in settings.base)
    plan = SweepPlan(bases, evaluator, 0 if evaluator is None else parts.worker_count(settings.workers, evaluator))
    if getattr(evaluator, "recipe", None) is not None and plan.networks:
        check_memory(max(plan.networks, key=lambda network: cost_of(network).activations), evaluator, max(1, plan.workers))
    return plan


def check(settings: SweepSettings) -> None:
    for name in ("base", "axis", "seeds"):
        values = getattr(settings, name)
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{name}={','.join(map(str, values))}: name at least one, and none twice")
    if not 1 <= settings.folds <= 20 or (settings.folds > 1 and len(settings.seeds) < 2):
        raise ConfigError(f"folds={settings.folds} seeds={','.join(map(str, settings.seeds))}: folds from 1 to 20, and two seeds or more "
                          "for them to be held out by")
    if not 0 < settings.confidence < 1:
        raise ConfigError(f"confidence={settings.confidence:g}: it lies between 0 and 1, such as confidence=0.95")
    within = all(0 < ratio <= MOST and ratio != 1 for ratio in settings.ratios)
    if settings.factors is None and not (settings.ratios and within):
        raise ConfigError(f"ratios={','.join(f'{r:.10g}' for r in settings.ratios)}: multiples of the base's cost, such as ratios=2,4; "
                          f"above 0, at most {MOST}, and none is 1")
    if settings.resolution is not None and settings.resolution < 1:
        raise ConfigError(f"resolution={settings.resolution}: the base's pixels, at least 1")
    labels = [label_of(axis) for axis in settings.axis if rule_named(axis, "axis")]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"axis={','.join(settings.axis)}: two of them are called {max(labels, key=labels.count)}; rename one run folder")


def plan_base(name: str, settings: SweepSettings, evaluator: Any) -> BasePlan:
    """The base as it is trained, and its scaled networks."""
    whole = load_architecture(name)
    proxy, base = stand_in(whole, settings, evaluator)
    if evaluator is not None:
        evaluator.check(base)
    if settings.factors is None:
        members = [scaled for start in starts(settings) for axis in settings.axis for ratio in settings.ratios
                   if (scaled := to_ratio(base, axis, start, ratio, evaluator)) is not None]
    else:
        members = by_factors(base, settings, evaluator)
    return BasePlan(name, proxy, base, tuple(members))


# ------------------------------------------------------------------ the base


def stand_in(whole: Architecture, settings: SweepSettings, evaluator: Any) -> tuple[str, Architecture]:
    """The base at the size at which it is trained; itself where nothing is trained and no proxy is named.

    An automatic stand-in, or one of a width and depth, gets so few pixels that the largest network sees the images as
    they are, not enlarged.
    """
    images = evaluator.dataset() if getattr(evaluator, "data", None) is not None else None
    classes = whole.classes if images is None else len(images.classes)
    fitting = None if images is None else max(FEWEST_PIXELS, round(images.size / resolution_growth(settings)))
    name, pixels = settings.proxy, settings.resolution
    if PART.fullmatch(name):
        return name, part_of(name, pixels or fitting or whole.resolution)(whole, classes)
    if name == "auto" and images is None:
        name = "none"
    elif name == "auto":
        from scalesearch.studies.grid_plan import choose_proxies

        name = choose_proxies("auto", whole, evaluator)[0]
        pixels = pixels or (None if name == "none" else min(filter(None, (fitting, load_proxy(name).resolution))))
    chosen = load_proxy(name)
    return name, (chosen if pixels is None else replace(chosen, resolution=pixels))(whole, classes)


def part_of(text: str, pixels: int) -> Proxy:
    """`0.25x0.5`: a quarter of the channels and half of the layers, of a stride that leaves two pixels."""
    width, depth = _numbers(text, "proxy")
    return Proxy(width, depth, pixels, max(1, pixels // 2))


def resolution_growth(settings: SweepSettings) -> float:
    """The largest nominal multiplier of the resolution in the sweep."""
    own = [resolution for axis in settings.axis for _, _, resolution in literal(axis, settings)] if settings.factors is not None else \
          [_phi(rule_named(axis, "axis"), ratio) for axis in settings.axis for ratio in settings.ratios]
    return max([1.0, *own]) * max(resolution for _, resolution in starts(settings))


def _phi(rule: ScalingRule, ratio: float) -> float:
    """The nominal resolution multiplier at so many times the cost."""
    growth = rule.depth * rule.width**2 * rule.resolution**2
    return float(rule.resolution ** (math.log(ratio) / math.log(growth))) if growth > 1 else 1.0


def starts(settings: SweepSettings) -> list[tuple[float, float]]:
    """The (depth, resolution) pairs of `bases`: `2x1.3` is twice the layers at 1.3 times the pixels."""
    return [_pair(text) for text in settings.bases] if settings.bases else [(1.0, 1.0)]


def _pair(text: str) -> tuple[float, float]:
    numbers = _numbers(text, "bases")
    if len(numbers) != 2:
        raise ConfigError(f"bases={text}: pairs of depth and resolution, such as bases=1x1,1x1.3,2x1,2x1.3")
    return numbers[0], numbers[1]


def _numbers(text: str, where: str) -> list[float]:
    """`1.4x1.2x1.3` as its numbers, all above 0."""
    try:
        numbers: list[float] = [convert(part.strip(), float, where) for part in text.split("x")]
    except ConfigError:
        raise ConfigError(f"{where}={text}: not a number; write multipliers such as 2, or several as in 1.4x1.2x1.3") from None
    if min(numbers) <= 0:
        raise ConfigError(f"{where}={text}: multipliers are above 0")
    if max(numbers) > MOST:
        raise ConfigError(f"{where}={text}: no machine holds a network multiplied by more than {MOST}; write one such as 2")
    return numbers


# ------------------------------------------------------------------ axes


def label_of(axis: str) -> str:
    """The name of an axis in tables: of a grid run, its folder's."""
    return axis if axis in RULES else Path(axis).resolve().name


def pure(axis: str, start: Architecture) -> Callable[[Architecture], bool]:
    """For one of the three dimensions: that nothing but it has changed. Rounding may not borrow from the others."""
    if axis not in SINGLE:
        return lambda network: True

    def accepts(network: Architecture) -> bool:
        return all(one == other for name, one, other in zip(SINGLE, _dimensions(network), _dimensions(start), strict=True) if name != axis)

    return accepts


def _dimensions(network: Architecture) -> tuple[Any, Any, int]:
    """Layers, channels and pixels."""
    channels = (network.stem.channels, *(stage.channels for stage in network.stages), network.head.channels)
    return tuple(stage.layers for stage in network.stages), channels, network.resolution


# ------------------------------------------------------------------ to a cost


def to_ratio(base: Architecture, axis: str, start: tuple[float, float], ratio: float, evaluator: Any) -> Member | None:
    """The base, given its start, scaled along an axis to `ratio` times the base's cost; None where the start costs that much already."""
    rule, target = with_rounding(rule_named(axis, "axis"), base), ratio * cost_of(base).macs
    first = started(base, start)
    if start != (1.0, 1.0) and cost_of(first).macs >= target:
        return None
    alone = pure(axis, first)
    found = scale_to_cost(first, target, rule, accepts=lambda network: alone(network) and parts.can_evaluate(network, evaluator))
    if not 1 / NEAR <= found.ratio <= NEAR:
        nearest = found.cost / cost_of(base).macs
        raise BudgetError(f"ratios={ratio:g}: along axis={axis} {base.name} gets no nearer than {nearest:.2f} times its cost; "
                          "leave out that axis, or write another ratio or a wider, deeper or larger base")
    return Member(label_of(axis), start, found.depth * start[0], found.width, found.architecture.resolution / base.resolution, target,
                  found.moved, cost_of(found.architecture).macs, found.architecture)


def started(base: Architecture, start: tuple[float, float]) -> Architecture:
    if start == (1.0, 1.0):
        return base
    return rounding_of(base).scale(base, start[0], 1.0, round(base.resolution * start[1]))


# ------------------------------------------------------------------ by literal factors


def by_factors(base: Architecture, settings: SweepSettings, evaluator: Any) -> list[Member]:
    """The networks at literal multipliers; where every axis has one, they are one rung."""
    found, lists = [], {axis: literal(axis, settings) for axis in settings.axis}
    for start, axis in itertools.product(starts(settings), settings.axis):
        for depth, width, resolution in lists[axis]:
            factors = (depth * start[0], width, resolution * start[1])
            network = rounding_of(base).scale(base, factors[0], factors[1], round(base.resolution * factors[2]))
            if evaluator is not None:
                evaluator.check(network)
            found.append(Member(label_of(axis), start, *factors, None, False, cost_of(network).macs, network))
    return one_rung(found) if all(len(values) == 1 for values in lists.values()) and not settings.bases else found


def one_rung(members: list[Member]) -> list[Member]:
    """With their geometric mean as the target, where costs are near enough to each other for a slope to bridge."""
    costs = [m.macs for m in members]
    if len(costs) < 2 or max(costs) > NEAR * min(costs):
        return members
    target = math.exp(sum(map(math.log, costs)) / len(costs))
    return [replace(m, target=target) for m in members]


def literal(axis: str, settings: SweepSettings) -> list[tuple[float, float, float]]:
    """(depth, width, resolution) multipliers of an axis in `factors`.

    Of one dimension they are numbers, `depth:1,2,3`; of another axis triples, `compound:1.4x1.2x1.3`.
    Numbers without an axis are for all.
    """
    assert settings.factors is not None
    parsed = parse_factors(settings.factors)
    texts = parsed.get(axis, parsed.get("", ()))
    if not texts:
        raise ConfigError(f"factors={settings.factors}: none for axis={axis}; write {axis}:{'2' if axis in SINGLE else '1.4x1.2x1.3'}")
    return [_triple(axis, text) for text in texts]


def _triple(axis: str, text: str) -> tuple[float, float, float]:
    numbers = _numbers(text, "factors")
    if axis in SINGLE and len(numbers) == 1:
        place = SINGLE.index(axis)
        depth, width, resolution = (numbers[0] if i == place else 1.0 for i in range(3))
        return depth, width, resolution
    if axis in SINGLE or len(numbers) != 3:
        raise ConfigError(f"factors={text} of axis={axis}: " + ("one number, such as depth:2" if axis in SINGLE else
                                                               "depth, width and resolution, such as compound:1.4x1.2x1.3"))
    return numbers[0], numbers[1], numbers[2]


def parse_factors(text: str) -> dict[str, tuple[str, ...]]:
    """`depth:1,2 width:1,1.4` by axis; "" holds what is named for none.

    >>> parse_factors("depth:1,2 compound:1.4x1.2x1.3")
    {'depth': ('1', '2'), 'compound': ('1.4x1.2x1.3',)}
    """
    found: dict[str, tuple[str, ...]] = {}
    for word in text.replace("[", "").replace("]", "").replace(", ", ",").split():
        axis, colon, values = word.rpartition(":")
        found[axis if colon else ""] = tuple(value for value in values.split(",") if value)
    return found


def published_macs(table: str | None, bases: Sequence[str]) -> list[dict[str, Any]]:
    """The published rows of these bases for the answer: multipliers, pixels, what was printed, and the cost as built here."""
    if table is None:
        return []
    return [{"base": row.base, "axis": row.axis, "depth": row.depth, "width": row.width, "resolution": row.resolution, "flops": row.flops,
             "top1": row.top1, "macs": row.macs, "note": row.note} for row in published_rows(table) if row.base in bases]
