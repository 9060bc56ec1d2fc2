"""The answer of a grid, from its records: standings, surface, correction, races, rules, audit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalesearch.analysis import Comparison, compare_with_best, nominal_growth
from scalesearch.architecture import Architecture
from scalesearch.config import to_mapping
from scalesearch.contrasts import compare_with
from scalesearch.cost import cost_of
from scalesearch.errors import RunError
from scalesearch.evaluators import rungs_of
from scalesearch.racing import Fate
from scalesearch.records import Record
from scalesearch.response_surface import Surface, SurfacePoint, coordinates, fit_surface
from scalesearch.scaling import ScalingRule
from scalesearch.spaces.compound import ScaledNetwork
from scalesearch.studies import parts
from scalesearch.studies.grid_audit import summarise_audit
from scalesearch.studies.grid_plan import Beside, Level, Plan, audit_seeds, tolerance_of
from scalesearch.studies.grid_settings import GridSettings

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Look:
    """A round of a race: its seeds, the networks that ran, and what was decided after it."""

    round: int
    seeds: tuple[int, ...]
    ran: tuple[str, ...]
    stopped: Mapping[str, Fate]
    pursued: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of the first round's trainings: the mean accuracy of each network that came so far, and which stopped, clearly behind."""

    epochs: int
    means: Mapping[str, float | None]
    stopped: tuple[str, ...]

    @property
    def goes_on(self) -> tuple[str, ...]:
        return tuple(id for id in self.means if id not in self.stopped)


@dataclass(frozen=True, slots=True)
class Race:
    """What a race gave each network of a φ: its accuracies at the seeds that it ran, in their order.

    looks   one a round; none where all networks have the same seeds
    most    seeds of a network that ran every round
    pauses  of the first round; a network that stopped there has no accuracy, since it was not trained to the end
    """

    phi: float
    accuracies: Mapping[str, tuple[float | None, ...]]
    looks: tuple[Look, ...]
    most: int
    pauses: tuple[Pause, ...] = ()

    @property
    def behind(self) -> frozenset[str]:
        """Networks that the last look tells from the best of its time."""
        return frozenset(id for id, fate in (self.looks[-1].stopped.items() if self.looks else ()) if fate == "behind")

    @property
    def seeds_of_first(self) -> int:
        """Trainings of each network in the first round."""
        return len(self.looks[0].seeds) if self.looks else self.most

    def stopped_at(self, id: str) -> Pause | None:
        """The pause at which a network stopped; None for one that was trained to the end."""
        return next((pause for pause in self.pauses if id in pause.stopped), None)

    @property
    def trainings(self) -> int:
        return sum(len(row) for row in self.accuracies.values())

    def full(self) -> dict[str, list[float | None]]:
        """Accuracies at every seed of the run, None where a network did not run."""
        return {id: [*row, *[None] * (self.most - len(row))] for id, row in self.accuracies.items()}


def summarise(plan: Plan, settings: GridSettings, races: Sequence[Race], records: Sequence[Record], folder: Path) -> dict[str, Any]:
    """The command's JSON object: every network with its coefficients, mean and interval, and what is tied with the best.

    Stages are added by the run, since they begin from the best.
    """
    first, accuracies = races[0], {**_others(plan, settings, records), **races[0].full()}
    surface = fit(plan, settings, races, records)
    standings = {race.phi: standings_of(race, surface, settings) for race in races}
    comparison = standings[first.phi]
    if comparison.best is None:
        raise RunError(f"{folder}: no training succeeded; the causes are in {folder}/records.jsonl")
    pooled = compare(accuracies, settings)
    networks = [_row(n, accuracies, comparison, pooled, first, surface, plan) for n in plan.networks]
    networks.sort(key=lambda row: (not row[settings.constraint], _place(row, settings)))
    best = next(row for row in networks if row["id"] == comparison.best)
    last = len(rungs_of(plan.evaluator)) - 1
    base = parts.network_summary(plan.base, [r for r in records if (r.id, r.fingerprint, r.rung) == (
        plan.base.id, plan.evaluator.fingerprint, last)])
    known = {record.key: record for record in reversed(records)}
    audited = summarise_audit(plan.base, plan.audited, plan.evaluator, plan.long, known, audit_seeds(settings),
                              settings.confidence) if plan.audited else None
    return {"run": str(folder), "phi": plan.first.phi, "constraint": settings.constraint, "solve": settings.solve,
            "step": plan.first.space.step, "triples": triples_of(plan.first, settings),
            "base": {**base, "proxy": plan.proxy}, "base_of": settings.base, "evaluator": plan.evaluator.name,
            "note": plan.evaluator.note, "folds": settings.folds, "repeats": settings.repeats, "confidence": settings.confidence,
            "networks": networks, "best": best, "method": comparison.method,
            "choices": choices(plan, settings, accuracies, networks, comparison), "visible_difference": comparison.visible,
            "rule": to_mapping(ScalingRule(*best["representative"])),
            "surface": None if surface is None else to_mapping(surface), "race": race_mapping(first, comparison.confidence),
            "slope": slope_of(surface, [n.architecture.id for level in plan.levels for n in level.networks]),
            "phis": None if len(races) == 1 else [
                _phi(level, race, standings[race.phi], surface, settings, plan) for level, race in zip(plan.levels, races, strict=True)],
            "stages": None, "rules": rules_of(plan, settings, races, standings, surface, records) or None, "audit": audited,
            "training_macs": sum(r.training_macs for r in records), "data": _data_summary(plan.evaluator),
            "enlarged": enlarged(plan),
            "failures": len([r for r in records if not r.ok])}


def enlarged(plan: Plan) -> list[int]:
    """Resolutions of networks that see the images larger than they are stored, which adds no detail; none without images."""
    data = _data_summary(plan.evaluator)
    pixels = {n.architecture.resolution for level in plan.levels for n in level.networks}
    return [] if data is None else sorted(px for px in pixels if px > data["size"])


def _others(plan: Plan, settings: GridSettings, records: Sequence[Record]) -> dict[str, list[float | None]]:
    """The other constraint's networks: the first round's seeds at most."""
    first = settings.rounds[0]
    found = parts.accuracies_of(records, plan.evaluator, [n.architecture.id for n in plan.others], first)
    return {id: [*row, *[None] * (len(settings.seeds) - len(first))] for id, row in found.items()}


# ------------------------------------------------------------------ standings


def looks_confidence(settings: GridSettings) -> float:
    """Of each look of a race, so that all together keep the run's confidence (Bonferroni)."""
    return 1 - (1 - settings.confidence) / settings.looks


def compare(accuracies: Mapping[str, Sequence[float | None]], settings: GridSettings, confidence: float | None = None) -> Comparison:
    return compare_with_best(accuracies, confidence or settings.confidence, settings.test_fraction)


def standings_of(race: Race, surface: Surface | None, settings: GridSettings) -> Comparison:
    """All networks of a φ against the best, at equal cost: differences at the confidence of a look, as the race decides;
    means as measured, at the run's."""
    rows = race.full()
    found, measured = compare(carried(rows, surface, settings), settings, looks_confidence(settings)), compare(rows, settings)
    return dataclasses.replace(found, standings=tuple(
        dataclasses.replace(s, mean=measured[s.id].mean, interval=measured[s.id].interval) for s in found.standings))


def carried(rows: Mapping[str, Sequence[float | None]], surface: Surface | None, settings: GridSettings) -> dict[str, list[float | None]]:
    """Accuracies at exactly 2^φ times the cost, along the fitted slope; as measured where there is none, or where the
    product is the constraint and cost is not."""
    correction = {} if surface is None or settings.constraint == "nominal" else surface.correction
    return {id: _at(row, correction.get(id, 0.0)) for id, row in rows.items()}


def _place(row: Mapping[str, Any], settings: GridSettings) -> float:
    """Orders rows by what is compared, the best first."""
    correction = 0.0 if settings.constraint == "nominal" else row["correction"] or 0.0
    return 1.0 if row["mean"] is None else -row["mean"] - correction


def choices(plan: Plan, settings: GridSettings, accuracies: Mapping[str, Sequence[float | None]],
            rows: Sequence[Mapping[str, Any]], comparison: Comparison) -> dict[str, Any]:
    """What each constraint would choose at the first φ; the one that is not the run's own by accuracies as measured."""
    found: dict[str, Any] = {}
    for constraint, members in (("realised", plan.realised), ("nominal", plan.nominal)):
        inside = {id: row for id, row in accuracies.items() if id in members}
        chosen = comparison.best if constraint == settings.constraint else compare(inside, settings).best if inside else None
        found[constraint] = next((row for row in rows if row["id"] == chosen), None)
    return found


def _row(network: ScaledNetwork, accuracies: Mapping[str, Sequence[float | None]], comparison: Comparison, pooled: Comparison,
         race: Race, surface: Surface | None, plan: Plan) -> dict[str, Any]:
    """One network of the answer. Those of the other constraint alone have an interval, from all networks
    together, but no standing: they do not compete."""
    identity = network.architecture.id
    competes = identity in race.accuracies
    standing = (comparison if competes else pooled)[identity]
    interval = standing.interval
    shares = coordinates(plan.base, network.architecture).shares
    correction = None if surface is None else surface.correction.get(identity)
    pause = race.stopped_at(identity)
    return {"id": identity, "macs": network.cost.macs, "params": network.cost.params, "resolution": network.architecture.resolution,
            "cost_ratio": network.ratio, "coefficients": [list(triple) for triple in network.coefficients],
            "representative": list(representative(network.coefficients)), "accuracies": list(accuracies[identity]),
            "mean": standing.mean, "interval": [interval.low, interval.high] if interval else None,
            "corrected": None if correction is None or standing.mean is None else standing.mean + correction, "correction": correction,
            "shares": None if shares is None else [shares.depth, shares.width, shares.resolution],
            "difference": standing.difference if competes else None, "tied": standing.tied if competes else None,
            "stopped": None if pause is None else {"epochs": pause.epochs, "mean": pause.means[identity]},
            "realised": identity in plan.realised, "nominal": identity in plan.nominal, "architecture": to_mapping(network.architecture)}


def triples_of(level: Level, settings: GridSettings) -> int:
    """How many triples of the grid fit."""
    return level.space.count(settings.constraint, tolerance_of(settings, settings.constraint))[0]


def representative(coefficients: Sequence[Sequence[float]]) -> Triple:
    """Of the triples that build one network, the one whose nominal product α·β²·γ² is nearest to 2."""
    alpha, beta, gamma = min((tuple(triple) for triple in coefficients), key=lambda c: (abs(nominal_growth(c) - 2.0), c))
    return alpha, beta, gamma


def race_mapping(race: Race, confidence: float) -> dict[str, Any] | None:
    """The result's "race", `confidence` that of each look; None where all networks had the same seeds and no pauses."""
    if not race.looks:
        return None
    return {"looks": [to_mapping(look) for look in race.looks], "confidence": confidence, "trainings": race.trainings,
            "stopped": race.seeds_of_first * sum(len(pause.stopped) for pause in race.pauses),
            "without": race.most * len(race.accuracies), "behind": sorted(race.behind),
            "pauses": [to_mapping(pause) for pause in race.pauses]}


def _phi(level: Level, race: Race, comparison: Comparison, surface: Surface | None, settings: GridSettings, plan: Plan) -> dict[str, Any]:
    """A level of several."""
    accuracies = race.full()
    rows = [_row(n, accuracies, comparison, comparison, race, surface, plan) for n in level.networks]
    if level is not plan.first:  # trained for the run's own constraint alone
        rows = [{**row, "realised": settings.constraint == "realised", "nominal": settings.constraint == "nominal"} for row in rows]
    rows.sort(key=lambda row: _place(row, settings))
    return {"phi": level.phi, "step": level.space.step, "triples": triples_of(level, settings), "networks": rows,
            "best": next((row for row in rows if row["id"] == comparison.best), None), "tied": list(comparison.tied),
            "method": comparison.method, "visible_difference": comparison.visible, "race": race_mapping(race, comparison.confidence)}


# ------------------------------------------------------------------ surface


def fit(plan: Plan, settings: GridSettings, races: Sequence[Race], records: Sequence[Record]) -> Surface | None:
    """The surface through every network of every φ; the other constraint's networks and the base tell what a doubling brings."""
    base = parts.accuracies_of(records, plan.evaluator, [plan.base.id], settings.seeds)[plan.base.id]
    return surface_of(plan, settings, {race.phi: race.full() for race in races}, base, _others(plan, settings, records))


def surface_of(plan: Plan, settings: GridSettings, rows: Mapping[float, Mapping[str, Sequence[float | None]]],
               base: Sequence[float | None], others: Mapping[str, Sequence[float | None]] | None = None) -> Surface | None:
    """The surface through the networks of some φ, from their accuracies and the base's by seed; `others` are of the first φ."""
    points: dict[str, SurfacePoint] = {}

    def add(phi: float, network: Architecture, row: Sequence[float | None]) -> None:
        padded = (*row, *[None] * (len(base) - len(row)))
        points.setdefault(network.id, SurfacePoint(network.id, phi, coordinates(plan.base, network), padded))

    for level in plan.levels:
        for network in level.networks:
            if network.architecture.id in rows.get(level.phi, {}):
                add(level.phi, network.architecture, rows[level.phi][network.architecture.id])
    for network in plan.others if others else ():
        add(plan.first.phi, network.architecture, (others or {})[network.architecture.id])
    add(0.0, plan.base, base)
    return fit_surface(list(points.values()), settings.confidence, settings.test_fraction)


def slope_of(surface: Surface | None, competing: Sequence[str]) -> dict[str, Any] | None:
    """What a doubling of the cost brings, by which accuracies are corrected to exactly the target; points are fractions.

    `largest` is the largest correction among the networks that compete.
    """
    if surface is None:
        return None
    return {"points": surface.slope, "interval": list(surface.slope_interval),
            "largest": max((abs(surface.correction.get(id, 0.0)) for id in competing), default=0.0)}


# ------------------------------------------------------------------ rules


def rules_of(plan: Plan, settings: GridSettings, races: Sequence[Race], standings: Mapping[float, Comparison], surface: Surface | None,
             records: Sequence[Record]) -> list[dict[str, Any]]:
    """Each named rule against the grid's best of its φ, corrected to equal cost; the best was picked, so any pair might have been it."""
    found = []
    for race in races:
        beside, best = [rule for rule in plan.rules if rule.phi == race.phi], standings[race.phi].best
        if not beside or best is None:
            continue
        seen = parts.accuracies_of(records, plan.evaluator, [rule.architecture.id for rule in beside], settings.seeds)
        slope = 0.0 if surface is None else surface.slope
        target = 2.0**race.phi * cost_of(plan.base).macs
        macs = {**{rule.architecture.id: rule.scaled.cost for rule in beside},
                **{n.architecture.id: n.cost.macs for level in plan.levels if level.phi == race.phi for n in level.networks}}
        table = {id: _at(row, -slope * math.log2(macs[id] / target)) for id, row in {**race.full(), **seen}.items()}
        contrasts = compare_with(best, table, among=list(seen), picked=True, confidence=settings.confidence,
                                 test_fraction=settings.test_fraction)
        found += [_rule_row(rule, race, seen[rule.architecture.id], table, contrasts, best, target) for rule in beside]
    return found


def _at(accuracies: Sequence[float | None], correction: float) -> list[float | None]:
    return [None if value is None else value + correction for value in accuracies]


def _rule_row(rule: Beside, race: Race, accuracies: Sequence[float | None], table: Mapping[str, Sequence[float | None]], contrasts: Any,
              best: str, target: float) -> dict[str, Any]:
    id, there = rule.architecture.id, [value for value in accuracies if value is not None]
    corrected = [value for value in table[id] if value is not None]
    row = {"rule": rule.rule, "phi": race.phi, "id": id, "macs": rule.scaled.cost, "cost_ratio": 2.0**race.phi * rule.scaled.ratio,
           "resolution": rule.architecture.resolution, "moved": rule.scaled.moved, "own_phi": rule.scaled.phi,
           "accuracies": list(accuracies), "mean": sum(there) / len(there) if there else None,
           "corrected": sum(corrected) / len(corrected) if corrected else None, "reference": best, "method": contrasts.method,
           "architecture": to_mapping(rule.architecture)}
    if id == best:
        return {**row, "difference": 0.0, "bounds": None, "standing": "the same network"}
    found = contrasts[id]
    return {**row, "difference": found.difference, "bounds": None if found.bounds is None else list(found.bounds),
            "standing": found.standing}


def _data_summary(evaluator: Any) -> dict[str, Any] | None:
    """Name and number of images; None for an evaluator that looks at none."""
    if getattr(evaluator, "data", None) is None:
        return None
    images = evaluator.dataset()
    return {"name": images.name, "images": len(images.data), "size": images.size, "classes": len(images.classes)}
