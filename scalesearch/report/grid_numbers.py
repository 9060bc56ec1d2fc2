"""A coefficient grid in numbers: the networks that were trained, their standings, and what each constraint would choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scalesearch import analysis
from scalesearch.analysis import Comparison, Interval, Standing, compare_with_best
from scalesearch.architecture import Architecture, load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ScalesearchError
from scalesearch.report import common
from scalesearch.report.runs import Run, architecture_of
from scalesearch.report.tables import triple

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Trained:
    """A network of the grid: every triple that builds it, and its accuracies on the shared folds or seeds."""

    id: str
    macs: int
    ratio: float | None
    coefficients: tuple[Triple, ...]
    representative: Triple | None
    accuracies: tuple[float | None, ...]
    constraints: frozenset[str]
    architecture: Architecture | None
    told: tuple[float, Interval | None] | None = None  # mean and interval as the study says
    tied: bool | None = None  # as the study says, where a race has decided
    correction: float = 0.0  # to exactly 2^φ times the cost, where that is what networks are compared at
    stopped: int | None = None  # epochs after which it was behind and went no further
    paused: bool = False  # of a run that has not finished: on its way

    @property
    def label(self) -> str:
        return f"({triple(self.representative)})" if self.representative else self.id


@dataclass(frozen=True)
class Choice:
    """The networks that fit a constraint, compared; `best` is what it would choose."""

    constraint: str
    networks: tuple[Trained, ...]
    comparison: Comparison

    @property
    def best(self) -> Trained | None:
        return next((n for n in self.networks if n.id == self.comparison.best), None)


def trained_networks(run: Run) -> list[Trained]:
    """From the result where the run has finished, else from the records."""
    told = run.result.get("networks")
    if isinstance(told, Sequence):
        return [from_result(row, run) for row in told]
    base = base_of(run)
    base_macs = cost_of(base).macs if base else None
    seeds = sorted({r.seed for n in run.candidates for r in n.records})
    last = int(run.config.get("rungs") or 1) - 1
    found = []
    for n in run.candidates:
        coefficients = triples_of(n.values)
        ratio = n.macs / base_macs if base_macs else None
        whole = replace(n, records=tuple(r for r in n.records if r.rung == last))
        found.append(Trained(n.id, n.macs, ratio, coefficients, coefficients[0] if coefficients else None,
                             tuple(common.by_seed(whole, seeds)), constraints(run, {}, coefficients, ratio),
                             architecture_of(n.architecture), paused=bool(n.good) and not whole.good))
    return found


def from_result(row: Mapping[str, Any], run: Run) -> Trained:
    network = run.network(row.get("id"))
    architecture = architecture_of(row.get("architecture")) or architecture_of(network.architecture if network else None)
    coefficients = tuple((float(a), float(b), float(c)) for a, b, c in row.get("coefficients") or ())
    named = row.get("representative")
    representative = (float(named[0]), float(named[1]), float(named[2])) if named else coefficients[0] if coefficients else None
    ratio, mean_told, interval = row.get("cost_ratio"), row.get("mean"), row.get("interval")
    told = (float(mean_told), Interval(*interval) if interval else None) if mean_told is not None else None
    stopped = row.get("stopped") or {}
    correction = 0.0 if run.config.get("constraint") == "nominal" else row.get("correction") or 0.0
    return Trained(str(row["id"]), int(row["macs"]), ratio, coefficients, representative, tuple(row.get("accuracies") or ()),
                   constraints(run, row, coefficients, ratio), architecture, told, row.get("tied"), correction,
                   stopped.get("epochs"))


def constraints(run: Run, row: Mapping[str, Any], coefficients: Sequence[Triple], ratio: float | None) -> frozenset[str]:
    """Which constraints a network satisfies: as the study says, else by its product and its cost."""
    tolerance, nominal_tolerance = (float(run.config.get(key) or default) for key, default in (
        ("tolerance", 0.05), ("nominal_tolerance", 0.1)))
    nominal = analysis.fits_nominal(coefficients, nominal_tolerance)
    realised = ratio is not None and analysis.fits_realised(ratio, phis_of(run)[0], tolerance)
    flags = {"nominal": row.get("nominal", nominal), "realised": row.get("realised", realised)}
    return frozenset(name for name, fits in flags.items() if fits)


def phis_of(run: Run) -> list[float]:
    """Each φ; the first is the one whose networks are compared here."""
    told = run.config.get("phi")
    return [float(phi) for phi in told] if isinstance(told, Sequence) and not isinstance(told, str) else [float(told or 1.0)]


def triples_of(values: Mapping[str, Any]) -> tuple[Triple, ...]:
    try:
        return ((float(values["alpha"]), float(values["beta"]), float(values["gamma"])),)
    except (KeyError, TypeError, ValueError):
        return ()


def base_of(run: Run) -> Architecture | None:
    """The network that was scaled: from the result, from a record of it, or the preset that the configuration names."""
    told = run.result.get("base")
    if isinstance(told, Mapping):
        found = architecture_of(told.get("architecture")) or architecture_of(told)
        if found:
            return found
    if run.baseline:
        return architecture_of(run.baseline.architecture)
    named = run.config.get("base") or run.config.get("architecture")
    try:
        return load_architecture(str(named)) if named and run.config.get("proxy") in (None, "none") else None
    except ScalesearchError:
        return None


def folds_of(run: Run) -> int:
    settings = run.config.get("evaluator")
    inside = settings.get("folds") if isinstance(settings, Mapping) else None
    return int(run.config.get("folds") or inside or 1)


def compare(run: Run, networks: Sequence[Trained], confidence: float | None = None, at_cost: bool = False) -> Comparison:
    """As measured, or carried to exactly 2^φ times the cost."""
    folds = folds_of(run)
    rows = {n.id: [None if a is None else a + n.correction * at_cost for a in n.accuracies] for n in networks}
    return compare_with_best(rows, confidence or common.confidence_of(run), 1 / folds if folds > 1 else None)


def all_standings(run: Run, networks: Sequence[Trained], mine: Choice) -> dict[str, Standing]:
    """Each network's place in the run's own comparison; those of the other constraint have a mean and interval only."""
    found = {s.id: s for s in mine.comparison.standings}
    together = compare(run, networks)
    for n in networks:
        if n.id not in found:
            alone = together[n.id]
            found[n.id] = Standing(n.id, alone.n, *(n.told or (alone.mean, alone.interval)))
    return found


def choice_of(run: Run, networks: Sequence[Trained], constraint: str) -> Choice:
    fitting = tuple(n for n in networks if constraint in n.constraints)
    own = constraint == run.config.get("constraint", "realised")
    return Choice(constraint, fitting, raced(run, fitting) if own else compare(run, fitting))


def raced(run: Run, networks: Sequence[Trained]) -> Comparison:
    """The run's own comparison: differences at equal cost and the confidence of a look of its race, and its verdicts; means as
    measured, at the run's."""
    measured, race = compare(run, networks), run.result.get("race")
    looked = compare(run, networks, float(race["confidence"]) if isinstance(race, Mapping) else None, at_cost=True)
    tied = {n.id: n.tied for n in networks}
    return replace(looked, standings=tuple(
        replace(s, mean=measured[s.id].mean, interval=measured[s.id].interval, tied=s.tied if tied.get(s.id) is None else bool(tied[s.id]))
        for s in looked.standings))
