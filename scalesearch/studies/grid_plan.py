"""What `grid` decides before the first training; every impossible wish ends here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scalesearch.architecture import Architecture, load_architecture
from scalesearch.config import convert, format_count
from scalesearch.cost import cost_of
from scalesearch.errors import BudgetError, ConfigError
from scalesearch.evaluators import rungs_of
from scalesearch.response_surface import coordinates
from scalesearch.scaling import PROXIES, RULES, load_proxy
from scalesearch.screen import Screen
from scalesearch.spaces.compound import CompoundSpace, ScaledNetwork
from scalesearch.studies import parts
from scalesearch.studies.audit import LONGER
from scalesearch.studies.audit_networks import Listed
from scalesearch.studies.equal_cost import Scaled, scale_to_cost
from scalesearch.studies.grid_audit import STEP as AUDIT_STEP
from scalesearch.studies.grid_audit import audited_networks
from scalesearch.studies.grid_settings import (
    COEFFICIENTS,
    FEWEST_BESIDE,
    FEWEST_NETWORKS,
    SCREENED,
    GridSettings,
    check_settings,
)
from scalesearch.studies.scale import rule_named
from scalesearch.studies.train import MEMORY_SHARE, predicted_memory

# Steps that `step=auto` tries, coarsest first: whole numbers of steps in 1, so that 1.15 is 1.15.
STEPS = (0.2, 0.1, 0.05, 0.025, 0.02, 0.01)


@dataclass(frozen=True)
class Level:
    """The networks of one φ that satisfy the run's constraint."""

    phi: float
    space: CompoundSpace
    networks: tuple[ScaledNetwork, ...]


@dataclass(frozen=True)
class Beside:
    """A named rule at the grid's cost; `phi` is the level's, `scaled.phi` the rule's own."""

    rule: str
    phi: float
    scaled: Scaled

    @property
    def architecture(self) -> Architecture:
        return self.scaled.architecture


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first training.

    levels   one for each φ, the first of which the other constraint and the stages belong to
    others   networks of the other constraint that are not in the first level
    long     the evaluator of the audit's longer schedule; None: no audit
    """

    base: Architecture
    proxy: str
    levels: tuple[Level, ...]
    others: tuple[ScaledNetwork, ...]
    nominal: frozenset[str]
    realised: frozenset[str]
    rules: tuple[Beside, ...]
    audited: tuple[Listed, ...]
    evaluator: Any
    long: Any
    workers: int

    @property
    def first(self) -> Level:
        return self.levels[0]

    @property
    def networks(self) -> tuple[ScaledNetwork, ...]:
        """Of both constraints at the first φ."""
        return (*self.others, *self.first.networks)


def make_plan(settings: GridSettings, screen: Screen | None = None) -> Plan:
    """The base at the size at which it is trained, and the distinct networks of every φ, constraint and rule."""
    check_settings(settings)
    whole = load_architecture(settings.base)
    check_pixels(whole)
    whole_training = parts.load_evaluator(str(settings.evaluator["name"]), settings.evaluator, settings.data, settings.recipe, screen,
                                          folds=settings.folds)
    evaluator = whole_training if settings.rungs == 1 else parts.pausing(whole_training, settings.rungs, settings.reduction)
    constraint, other = (("realised", "nominal") if settings.constraint == "realised" else ("nominal", "realised"))
    proxy, base, first = first_fitting(settings, whole, evaluator, constraint)
    levels = (first, *(level_of(settings, base, constraint, phi) for phi in settings.phis[1:]))
    beside = level_of(settings, base, other, settings.phis[0]).networks if settings.compare else ()
    own = {network.architecture.id for network in first.networks}
    ids = {constraint: frozenset(own), other: frozenset(network.architecture.id for network in beside)}
    rules = tuple(beside_of(settings, name, base, phi, evaluator) for phi in settings.phis for name in settings.rules)
    long = longer(whole_training, settings) if settings.audit else None
    plan = Plan(base, proxy, levels, tuple(n for n in beside if n.architecture.id not in own), ids["nominal"], ids["realised"], rules,
                tuple(to_audit(settings, first)) if settings.audit else (), evaluator, long,
                parts.worker_count(settings.workers, evaluator))
    check_memory(plan)
    return plan


# ------------------------------------------------------------------ what cannot be


def check_pixels(base: Architecture) -> None:
    """ConfigError for a base whose strides leave less than a pixel, so that its resolution means nothing."""
    if base.resolution < base.total_stride:
        raise ConfigError(f"{base.name or base.id}: {base.resolution} px are below its total stride of {base.total_stride}, so that "
                          f"resolution is not free: one pixel is left of the image; set resolution={base.total_stride} or more in it")


def check_free(settings: GridSettings, base: Architecture) -> None:
    """ConfigError for a base that one of the coefficients cannot change by steps."""
    if settings.stages > len(base.stages):
        raise ConfigError(f"stages={settings.stages}: {base.name or base.id} has {len(base.stages)} stages; write stages=2, say")
    low, high = settings.alpha
    if high > low and all(stage.layers == 1 for stage in base.stages):
        raise ConfigError(f"{base.name or base.id} has one layer in every stage, so that depth is not free: any alpha above 1 doubles all "
                          "of them alike; take a base of deeper stages, or alpha=1,1 to search width and resolution alone")


def check_memory(plan: Plan) -> None:
    """ConfigError where the largest networks do not fit into the free memory of a CPU; a GPU says so itself."""
    evaluator, free = plan.evaluator, parts.free_memory()
    if getattr(evaluator, "recipe", None) is None or evaluator.on_gpu or free is None:
        return
    for phi, networks in by_phi(plan):
        largest = max(networks, key=lambda network: cost_of(network).activations)
        needed = max(1, plan.workers) * predicted_memory(largest, evaluator).peak
        if needed > MEMORY_SHARE * free:
            raise ConfigError(f"phi={phi:g}: its largest network, {format_count(cost_of(largest).macs)} multiply-adds at "
                              f"{largest.resolution} px in batches of {evaluator.recipe.batch}, {max(1, plan.workers)} at a time, takes "
                              f"about {needed / 1e9:.2g} GB and {free / 1e9:.2g} GB are free; take a smaller phi, base, "
                              "recipe.micro_batch or workers")


def by_phi(plan: Plan) -> Iterator[tuple[float, list[Architecture]]]:
    """Every network that will be trained at a φ."""
    for level in plan.levels:
        rules = [rule.architecture for rule in plan.rules if rule.phi == level.phi]
        others = [n.architecture for n in plan.others] if level is plan.first else []
        yield level.phi, [*(n.architecture for n in level.networks), *rules, *others]


# ------------------------------------------------------------------ the networks


def first_fitting(settings: GridSettings, whole: Architecture, evaluator: Any, constraint: Any) -> tuple[str, Architecture, Level]:
    """The first proxy at which the grid has enough networks: how a stand-in rounds depends on the base."""
    proxies = choose_proxies(settings.proxy, whole, evaluator)
    for proxy in proxies:
        base = load_proxy(proxy)(whole, classes=_classes(evaluator, whole))
        check_pixels(base)
        check_free(settings, base)
        evaluator.check(base)
        try:
            return proxy, base, level_of(settings, base, constraint, settings.phis[0])
        except BudgetError:
            if proxy == proxies[-1]:
                raise
    raise AssertionError("choose_proxies names at least one")


def choose_proxies(name: str, base: Architecture, evaluator: Any) -> list[str]:
    """`auto`: the network itself where the images are large enough for it, else the stand-ins for their size."""
    if name != "auto":
        load_proxy(name)
        return [name]
    size = evaluator.dataset().size if getattr(evaluator, "data", None) is not None else base.resolution
    if size >= base.resolution:
        return ["none"]
    sizes = {key: proxy.resolution for key, proxy in PROXIES.items() if proxy.resolution}
    pixels = max((p for p in sizes.values() if p <= size), default=min(sizes.values()))
    return [key for key, p in sizes.items() if p == pixels]


def _classes(evaluator: Any, base: Architecture) -> int:
    return len(evaluator.dataset().classes) if getattr(evaluator, "data", None) is not None else base.classes


def level_of(settings: GridSettings, base: Architecture, constraint: Any, phi: float) -> Level:
    """The networks of a φ under a constraint; `step=auto` takes the coarsest step that gives enough of them."""
    own = constraint == settings.constraint
    fewest = FEWEST_NETWORKS if own else FEWEST_BESIDE
    steps = STEPS if settings.step == "auto" else (convert(settings.step, float, "step"),)
    for step in steps:
        space = CompoundSpace(base, step, settings.alpha, settings.beta, settings.gamma, phi, solve=settings.solve if own else None)
        if step == steps[-1] or space.count(constraint, tolerance_of(settings, constraint))[1] >= fewest:
            break
    networks = space.networks(constraint, tolerance_of(settings, constraint))
    if own and len(networks) < FEWEST_NETWORKS:
        raise BudgetError(_too_few(settings, space, networks, constraint))
    return Level(phi, space, spread(networks, base, settings.networks if own or settings.networks is None else FEWEST_BESIDE))


def spread(networks: Sequence[ScaledNetwork], base: Architecture, most: int | None) -> tuple[ScaledNetwork, ...]:
    """At most so many, far apart in where their growth went: the one nearest to even shares, then always the farthest from all taken."""
    if most is None or len(networks) <= most:
        return tuple(networks)
    shares = [coordinates(base, network.architecture).shares for network in networks]
    places = np.array([(1 / 3, 1 / 3, 1 / 3) if s is None else (s.depth, s.width, s.resolution) for s in shares])
    chosen = [int(np.argmin(np.linalg.norm(places - 1 / 3, axis=1)))]
    while len(chosen) < most:
        nearest = np.min(np.linalg.norm(places[:, None] - places[chosen], axis=2), axis=1)
        chosen.append(int(np.argmax(nearest)))
    return tuple(networks[i] for i in sorted(chosen))


def tolerance_of(settings: GridSettings, constraint: str) -> float:
    return settings.tolerance if constraint == "realised" else settings.nominal_tolerance


def _too_few(settings: GridSettings, space: CompoundSpace, networks: Sequence[ScaledNetwork], constraint: Any) -> str:
    name, tolerance = "tolerance" if constraint == "realised" else "nominal_tolerance", tolerance_of(settings, constraint)
    ways = [a for a in space.alternatives(constraint, tolerance) if a.networks >= FEWEST_NETWORKS]
    helps = ", ".join(str(a).replace("tolerance", name) for a in ways[:3]) or "a smaller step, or wider ranges of alpha, beta and gamma"
    return (f"step={space.step:g} {name}={tolerance:g}: only {len(networks)} distinct networks cost about "
            f"{space.target_ratio:g} times {space.baseline.name}; a grid takes at least {FEWEST_NETWORKS}: {helps}")


def beside_of(settings: GridSettings, name: str, base: Architecture, phi: float, evaluator: Any) -> Beside:
    """A named rule, scaled until its network costs what the grid's do."""
    scaled = scale_to_cost(base, 2.0**phi * cost_of(base).macs, rule_named(name, "rules"),
                           accepts=lambda network: parts.can_evaluate(network, evaluator))
    if abs(scaled.ratio - 1) > settings.tolerance:
        off = math.ceil(100 * abs(scaled.ratio - 1)) / 100
        raise BudgetError(f"rules={name}: the nearest that it comes to {2.0**phi:g} times {base.name} is {2.0**phi * scaled.ratio:.3g} "
                          f"times; leave it out, or allow tolerance={off:g}")
    return Beside(name if name in RULES else Path(name).resolve().name, phi, scaled)


def to_audit(settings: GridSettings, first: Level) -> Sequence[Listed]:
    """Growth in one, two and three dimensions, where the grid has it already from the grid."""
    finer = CompoundSpace(first.space.baseline, min(AUDIT_STEP, first.space.step), settings.alpha, settings.beta, settings.gamma, first.phi)
    return audited_networks(first.space.baseline, [*first.networks, *finer.networks("realised", settings.tolerance)])


def longer(evaluator: Any, settings: GridSettings) -> Any:
    """The evaluator of the audit's longer schedule."""
    recipe = getattr(evaluator, "recipe", None)
    if recipe is None:
        raise ConfigError(f"audit=true: evaluator={evaluator.name} trains nothing, so that no schedule is too short; leave it out")
    epochs = settings.audit_epochs if settings.audit_epochs is not None else LONGER * recipe.epochs
    if epochs <= recipe.epochs:
        raise ConfigError(f"audit_epochs={epochs}: no longer than the proxy's recipe.epochs={recipe.epochs}; "
                          f"write audit_epochs={LONGER * recipe.epochs}")
    return dataclasses.replace(evaluator, recipe=dataclasses.replace(recipe, epochs=epochs))


# ------------------------------------------------------------------ said before it starts


def say_plan(plan: Plan, settings: GridSettings, screen: Screen) -> None:
    """What is about to be trained and what it costs, before it starts."""
    stand_in = "" if plan.proxy == "none" else f" (proxy={plan.proxy}: {plan.base.resolution} px, the stand-in for {settings.base})"
    screen.status(f"base      {plan.base.name}: {cost_of(plan.base).macs:,} multiply-adds{stand_in}")
    for level in plan.levels:
        screen.status(f"grid      {_level_words(level, plan, settings)}")
    if plan.rules:
        screen.status("rules     " + ", ".join(f"{rule.rule} at {rule.scaled.ratio * 2**rule.phi:.3f}×" for rule in plan.rules))
    screen.status(f"accuracy  {plan.evaluator.name}: {plan.evaluator.note}")
    if settings.rungs > 1:
        ends = " and ".join(map(str, pauses_of(plan.evaluator)))
        screen.status(f"rungs     first-round trainings pause after {ends} of {plan.evaluator.recipe.epochs} epochs; who is clearly behind "
                      "there stops")
    most = bill(plan, settings)
    screen.status(f"cost      at most {most.trainings} trainings, about {format_count(most.macs)} training multiply-adds, "
                  f"{max(1, plan.workers)} at a time")


def _level_words(level: Level, plan: Plan, settings: GridSettings) -> str:
    found, distinct = level.space.count(settings.constraint, tolerance_of(settings, settings.constraint))
    sizes = "×".join(str(len(p.choices)) for p in level.space.parameters if COEFFICIENTS[p.name] != settings.solve)
    how = f"pairs, {settings.solve} solved," if settings.solve else "triples"
    fit = "the cost" if settings.solve else f"the {settings.constraint} constraint"
    said = f"φ={level.phi:g}: {sizes} {how} at step {level.space.step:g}; {found} fit {fit}, {distinct} distinct networks"
    said += "" if len(level.networks) == distinct else f", {len(level.networks)} of them far apart"
    if level is plan.first and plan.others:
        other = "α·β²·γ²" if settings.constraint == "realised" else "realised cost"
        said += f", {len(plan.others)} more by {other}"
    return said


@dataclass(frozen=True, slots=True)
class Bill:
    """What a run takes if nobody stops at a pause and every round of every race is run: trainings, their records, multiply-adds."""

    trainings: int
    records: int
    macs: float


def bill(plan: Plan, settings: GridSettings) -> Bill:
    first, later = len(settings.rounds[0]), sum(len(seeds) for seeds in settings.rounds[1:])
    rows: list[tuple[Architecture, float, Any]] = [(plan.base, first + later, plan.evaluator)]
    for level in plan.levels:
        share = first + later * min(settings.contenders, len(level.networks)) / len(level.networks)
        rows += [(n.architecture, share, plan.evaluator) for n in level.networks]
    again = (first - 1) * min(SCREENED, len(plan.others)) / max(1, len(plan.others))
    rows += [(n.architecture, 1 + again, plan.evaluator) for n in plan.others]
    rows += [(rule.architecture, len(settings.seeds), plan.evaluator) for rule in plan.rules]
    if settings.stages > 1:
        rows.append((plan.first.networks[-1].architecture, stage_points(settings.stages) * len(settings.seeds), plan.evaluator))
    rows += [(item.architecture, len(audit_seeds(settings)), side) for item in plan.audited for side in (plan.evaluator, plan.long)]
    return Bill(round(sum(times for _, times, _ in rows)), round(sum(times * len(rungs_of(side)) for _, times, side in rows)),
                sum(times * side.expected_training_macs(n) for n, times, side in rows))


def pauses_of(evaluator: Any) -> tuple[int, ...]:
    """The epochs after which the trainings of an evaluator with rungs pause."""
    ends: tuple[int, ...] = evaluator.ladder.epochs(evaluator.recipe.epochs)
    return ends[:-1]


def stage_points(groups: int) -> int:
    """Networks that fitting so many groups of stages takes: twice as many as there are unknowns."""
    return 2 * groups + 2


def audit_seeds(settings: GridSettings) -> tuple[int, ...]:
    """Two where there are so many, since one tells nothing of the noise."""
    return tuple(settings.seeds[:2])
