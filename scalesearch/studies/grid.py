"""`grid`: the compound-scaling coefficients α, β, γ of a base network, by training every distinct candidate.

Rounding makes many (α, β, γ) the same network and lets their cost drift from 2^φ, so the grid is
over distinct networks whose *realised* cost is right. The paper's nominal grid, α·β²·γ² ≈ 2, is
trained beside it, and the answer says what each would choose.

The answer is a region: seeds go to the networks that may still be the best (racing), a surface over the
shares of depth, width and resolution pools all networks, and what the measurements cannot tell apart
is said to be tied. Beside it: other φ, named rules, stages of different depth, an audit of the proxy.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalesearch.architecture import Architecture
from scalesearch.bench import OnRecord
from scalesearch.config import to_mapping
from scalesearch.errors import BudgetError
from scalesearch.evaluators import rungs_of
from scalesearch.executors import Executor, load_executor
from scalesearch.objective import AccuracyReward
from scalesearch.racing import next_round
from scalesearch.records import Record, RecordFile, open_run, run_name, write_atomic
from scalesearch.report.runs import mean
from scalesearch.scaling import ScalingRule
from scalesearch.screen import Screen
from scalesearch.search import evaluate_networks
from scalesearch.spaces.compound import ScaledNetwork
from scalesearch.studies import parts
from scalesearch.studies.grid_plan import STEPS, Level, Plan, audit_seeds, bill, make_plan, pauses_of, say_plan, stage_points
from scalesearch.studies.grid_settings import FEWEST_NETWORKS, KEPT, SCREENED, GridSettings, check_settings
from scalesearch.studies.grid_show import show
from scalesearch.studies.grid_summary import Look, Pause, Race, carried, summarise, surface_of
from scalesearch.studies.non_uniform import fit_stage_depths

__all__ = ["FEWEST_NETWORKS", "STEPS", "GridSettings", "check_settings", "make_plan", "run", "show"]


def run(settings: GridSettings, screen: Screen) -> dict[str, Any]:
    """Race the distinct networks of every φ, fit the surface, name the coefficients. The same command again continues."""
    plan = make_plan(settings, screen)
    config = to_mapping(settings)
    folder = parts.run_folder(settings.results, settings.name, run_name("grid", config))
    open_run(folder, "grid", config)
    say_plan(plan, settings, screen)
    started, before = time.monotonic(), len(RecordFile(folder / "records.jsonl").read())
    with RecordFile(folder / "records.jsonl") as records, training(plan, settings, records, screen) as (executor, on_record):
        study = Study(plan, settings, records, executor, folder, on_record)
        study.base()
        races = [study.race(level) for level in plan.levels]
        study.screen_others()
        study.rules()
        study.audit()
        result = study.summarise(races)
        result.update(study.stages(result))
    after = RecordFile(folder / "records.jsonl").read()
    result["training_macs"] = sum(record.training_macs for record in after)
    result["failures"] = sum(not record.ok for record in after)
    result["seconds"] = parts.seconds_in_all(folder, time.monotonic() - started, len(after) - before)
    _write(result, folder, plan, after, settings)
    return result


@contextmanager
def training(plan: Plan, settings: GridSettings, records: RecordFile, screen: Screen) -> Iterator[tuple[Executor, OnRecord]]:
    """The workers, and a bar that counts everything on record."""
    with closing(load_executor(settings.executor, plan.workers, plan.evaluator.inline)) as executor, \
            screen.progress(bill(plan, settings).records, "grid") as progress:

        def on_record(record: Record, done: int, of: int) -> None:
            progress.set(len(records), f"latest {parts.percent(record.accuracy)}" if record.ok else record.failure)

        yield executor, on_record


@dataclass(frozen=True)
class Study:
    """The steps of a run. Each decides from the records alone, so a run that is continued decides as before."""

    plan: Plan
    settings: GridSettings
    records: RecordFile
    executor: Executor
    folder: Path
    on_record: OnRecord

    def base(self) -> None:
        """The network that is scaled, for what a doubling of the cost brings."""
        self.train([self.plan.base], "baseline", self.settings.seeds)

    def race(self, level: Level) -> Race:
        """Every network of a φ at the first seeds, then those that may be the best, at equal cost, at the next ones."""
        settings, rounds = self.settings, self.settings.rounds
        by_id = {network.architecture.id: network for network in level.networks}
        pauses = self.pauses(level, by_id)
        pursued: Sequence[str] = pauses[-1].goes_on if pauses else list(by_id)
        accuracies: dict[str, list[float | None]] = {id: [] for id in pursued}
        looks: list[Look] = []
        for number, seeds in enumerate(rounds, start=1):
            if not pursued:
                break
            if number == 1:
                self.climb([by_id[id] for id in pursued], seeds, settings.rungs - 1)
            else:
                self.train_scaled([by_id[id] for id in pursued], "enumerate", seeds)
            for id, row in self.accuracies(pursued, seeds).items():
                accuracies[id] += row
            if settings.looks == 1:
                break
            decision = next_round(self.at_cost(level, accuracies, settings.seeds[:seeds[-1] + 1]), round=settings.rungs - 1 + number,
                                  rounds=settings.looks, most=settings.contenders, confidence=settings.confidence,
                                  test_fraction=settings.test_fraction, running=pursued)
            looks.append(Look(number, seeds, tuple(pursued), decision.stopped, decision.pursued))
            pursued = decision.pursued
        return Race(level.phi, {id: tuple(accuracies.get(id, ())) for id in by_id}, tuple(looks), len(settings.seeds), tuple(pauses))

    def pauses(self, level: Level, by_id: Mapping[str, ScaledNetwork]) -> list[Pause]:
        """The first round's trainings up to each pause; who is clearly behind there stops, but for as many as the answer needs."""
        settings, seeds, running = self.settings, self.settings.rounds[0], list(by_id)
        pauses: list[Pause] = []
        for rung in range(settings.rungs - 1):
            self.climb([by_id[id] for id in running], seeds, rung)
            reached = self.accuracies(running, seeds, rung)
            decision = next_round(self.at_cost(level, reached, seeds, rung), round=rung + 1, rounds=settings.looks, most=len(running),
                                  confidence=settings.confidence, test_fraction=settings.test_fraction, running=running)
            means = {id: mean(row) for id, row in reached.items()}
            behind = sorted((id for id, fate in decision.stopped.items() if fate == "behind"), key=lambda id: -(means[id] or 0.0))
            alive = sum(value is not None for value in means.values())
            stopped = behind[max(0, max(settings.contenders, KEPT) - (alive - len(behind))):]
            pauses.append(Pause(pauses_of(self.plan.evaluator)[rung], means, tuple(stopped)))
            running = list(pauses[-1].goes_on)
        return pauses

    def climb(self, networks: Sequence[ScaledNetwork], seeds: Sequence[int], rung: int) -> None:
        """First-round trainings up to a rung; where one of a network's failed at the rung before, its others go on."""
        alive = {network.architecture.id: tuple(seeds) for network in networks}
        if rung > 0:
            reached = self.accuracies(list(alive), seeds, rung - 1)
            alive = {id: tuple(seed for seed, value in zip(seeds, row, strict=True) if value is not None) for id, row in reached.items()}
        for shared in sorted(set(alive.values()), key=len, reverse=True):
            if shared:
                self.train_scaled([n for n in networks if alive[n.architecture.id] == shared], "enumerate", shared, until=rung)

    def screen_others(self) -> None:
        """The other constraint's networks at the first seed, the best few at the first round's others."""
        others, first = self.plan.others, self.settings.rounds[0]
        self.train_scaled(others, "screened", first[:1])
        found = {id: row[0] for id, row in self.accuracies([n.architecture.id for n in others], first[:1]).items()}
        best = sorted(others, key=lambda network: -(found[network.architecture.id] or 0.0))[:SCREENED]
        self.train_scaled(best, "screened", first)

    def rules(self) -> None:
        """Named rules at the grid's cost, at every seed that the winner of the race has."""
        self.train([rule.architecture for rule in self.plan.rules], "rule", self.settings.seeds)

    def audit(self) -> None:
        """Growth in one, two and three dimensions, at the proxy and at the longer schedule."""
        for side in (self.plan.evaluator, self.plan.long) if self.plan.audited else ():
            self.train([item.architecture for item in self.plan.audited], "audit", audit_seeds(self.settings), side)

    def summarise(self, races: Sequence[Race]) -> dict[str, Any]:
        return summarise(self.plan, self.settings, races, self.records.read(), self.folder)

    def stages(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Layers moved between groups of stages of the best network; where that gains, it is the rule. Nothing where stages=1."""
        if self.settings.stages == 1:
            return {}
        best, slope = result["best"], result["slope"]

        def evaluate(networks: Sequence[Architecture], seeds: Sequence[int]) -> dict[str, list[float | None]]:
            self.train(networks, "stages", seeds)
            return self.accuracies([network.id for network in networks], seeds)

        try:
            found = fit_stage_depths(self.plan.base, Architecture.from_mapping(best["architecture"]), ScalingRule(*best["representative"]),
                                     self.plan.first.phi, self.settings.stages, evaluate, seeds=tuple(self.settings.seeds),
                                     tolerance=self.settings.tolerance, points=stage_points(self.settings.stages),
                                     slope=None if slope is None else slope["points"], confidence=self.settings.confidence)
        except BudgetError as error:  # known only once there is a best network, which is worth telling all the same
            return {"stages": {"verdict": "unknown", "note": str(error)}}
        return {"stages": to_mapping(found), "rule": to_mapping(found.rule)}

    # -------------------------------------------------------------- helpers

    def train(self, networks: Sequence[Architecture], origin: str, seeds: Iterable[int], evaluator: Any = None,
              values: Sequence[Mapping[str, Any]] | None = None, until: int = -1) -> None:
        if networks:
            evaluate_networks(networks, evaluator or self.plan.evaluator, AccuracyReward(), records=self.records, origin=origin,
                              values=values, seeds=tuple(seeds), executor=self.executor, folder=self.folder, on_record=self.on_record,
                              until=until)

    def train_scaled(self, networks: Sequence[ScaledNetwork], origin: str, seeds: Iterable[int], until: int = -1) -> None:
        values = [dict(zip(("alpha", "beta", "gamma"), network.coefficients[0], strict=True)) for network in networks]
        self.train([network.architecture for network in networks], origin, seeds, values=values, until=until)

    def at_cost(self, level: Level, rows: Mapping[str, Sequence[float | None]], seeds: Sequence[int],
                rung: int = -1) -> dict[str, list[float | None]]:
        """Accuracies at exactly 2^φ times the cost, along the slope that these rows and the base show."""
        base = self.accuracies([self.plan.base.id], seeds, rung)[self.plan.base.id]
        surface = surface_of(self.plan, self.settings, {level.phi: rows}, base)
        return carried(rows, surface, self.settings)

    def accuracies(self, ids: Sequence[str], seeds: Sequence[int], rung: int = -1) -> dict[str, list[float | None]]:
        return parts.accuracies_of(self.records.read(), self.plan.evaluator, ids, seeds, rung)


def _write(result: dict[str, Any], folder: Path, plan: Plan, records: Sequence[Record], settings: GridSettings) -> None:
    from scalesearch.samplers.optuna_bridge import export_study

    ids = {network.architecture.id for network in plan.first.networks}
    last = len(rungs_of(plan.evaluator)) - 1
    whole = [r for r in records if r.origin == "enumerate" and r.id in ids and r.rung == last]
    export_study(whole, plan.first.space, folder / "study.journal")
    best = Architecture.from_mapping(result["best"]["architecture"])
    write_atomic(folder / "best.yaml", f"# best network of {folder}\n{best.to_yaml()}")
    parts.write_json(folder / "result.json", result)
    if settings.report:
        from scalesearch.report import write_report

        result["report"] = str(write_report(folder))
        parts.write_json(folder / "result.json", result)
