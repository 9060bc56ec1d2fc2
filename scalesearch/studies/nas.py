"""`nas`: multi-objective architecture search for a baseline network inside a window of cost.

The flow is `run`: the plan and its bill, an audit of the proxy, a prior, the stock baseline, the search,
the finalists, what it all bought. With no data named, accuracy is the surrogate's; with `data=…` every
candidate is trained on those images, and the bill comes from training steps timed on this device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalesearch.architecture import Architecture
from scalesearch.bench import OnRecord
from scalesearch.config import to_mapping
from scalesearch.errors import RunError
from scalesearch.executors import Executor, load_executor
from scalesearch.records import Record, RecordFile, open_run, run_name, write_atomic
from scalesearch.samplers import SAMPLERS
from scalesearch.screen import Screen
from scalesearch.search import SearchResult, evaluate_networks, run_search
from scalesearch.studies import nas_bill, parts
from scalesearch.studies.bought import Bought, what_it_bought
from scalesearch.studies.clock import Clock
from scalesearch.studies.nas_plan import NasSettings, Plan, make_plan, say_plan
from scalesearch.studies.nas_show import show
from scalesearch.studies.planner import Ledger, settle

STREAM = 5  # of random draws, beside the sampler's own from the same seed

__all__ = ["NasSettings", "make_plan", "run", "show"]


def run(settings: NasSettings, screen: Screen) -> dict[str, Any]:
    """Search, then put the winner beside the stock baseline. The same command again continues."""
    config = to_mapping(settings)
    folder = parts.run_folder(settings.results, settings.name, run_name("nas", config))
    clock = Clock(folder)
    plan = make_plan(settings, screen, folder)
    open_run(folder, "nas", config)
    say_plan(plan, settings, screen)
    with RecordFile(folder / "records.jsonl") as records, closing(make_executor(plan, settings)) as executor:
        study = Study.start(plan, settings, records, executor, folder, screen, clock)
        if hasattr(plan.evaluator, "prepare"):
            plan.evaluator.prepare(screen)
        baseline = study.baseline()
        audit = study.audit()
        prior = study.prior()
        sampler = study.sampler(prior)
        found = study.search(sampler)
        verdict = study.verdict(found)
        result = study.summarise(found, baseline, audit, prior, sampler, verdict)
    write(result, found, plan, folder, settings)
    return result


def make_executor(plan: Plan, settings: NasSettings) -> Executor:
    """One for all parts: its workers import torch once."""
    return load_executor(settings.executor, plan.workers, plan.evaluator.inline)


@dataclass
class Study:
    """One run of `nas`, a method for each of its parts; all of them evaluate on the same resumable path."""

    plan: Plan
    settings: NasSettings
    records: RecordFile
    executor: Executor
    folder: Path
    screen: Screen
    clock: Clock
    ledger: Ledger | None = None

    @classmethod
    def start(cls, plan: Plan, settings: NasSettings, records: RecordFile, executor: Executor, folder: Path, screen: Screen,
              clock: Clock) -> Study:
        """With a bill, and what it allows, where candidates are trained."""
        bill = nas_bill.make_or_read(plan, settings, folder, screen)
        if bill is None:
            return cls(plan, settings, records, executor, folder, screen, clock)
        allowed = dataclasses.replace(plan, trials=bill.trials, finalists=bill.finalists, final_seeds=bill.final_seeds)
        clock.tick(always=True)
        return cls(allowed, settings, records, executor, folder, screen, clock, Ledger(bill, records.read(), before=clock.seconds))

    def audit(self) -> Any:
        """Whether the proxy is fit to rank, where that is asked for."""
        if not self.settings.audit:
            return None
        from scalesearch.studies.audit import run_audit

        with self._progress("audit", "accuracy") as on_record:
            audit = run_audit(self.plan.space, self.plan.feasible, self.plan.evaluator, long=self.plan.audited,
                              networks=self.settings.audit, seed=self.settings.seed, on_record=on_record, **self._where())
        self.screen.status(f"audit     {audit.reason}")
        return audit

    def baseline(self) -> list[Record]:
        """The stock network, evaluated as the candidates are."""
        with self._progress("baseline", "accuracy") as on_record:
            return evaluate_networks([self.plan.baseline], self.plan.evaluator, self.plan.objective, origin="baseline",
                                     seeds=range(self.settings.repeats), measure=self.plan.meters.measure, on_record=on_record,
                                     **self._where())

    def prior(self) -> Any:
        """Scores by a supernet for networks of the window, where they are asked for."""
        if self.settings.prior is None:
            return None
        from scalesearch.studies.prior import supernet_prior

        settings = self.settings
        return supernet_prior(self.plan.space, self.plan.feasible, settings.data or {}, settings.recipe, self.records,
                              settings.prior_networks, settings=nas_bill.supernet_settings(settings), executor=self.executor,
                              workers=settings.workers, folder=self.folder, seed=settings.seed, screen=self.screen)

    def sampler(self, prior: Any) -> Any:
        """Knows what is known: costs exactly or as predicted, and what a prior says."""
        plan = self.plan
        sampler = SAMPLERS.build(self.settings.sampler, space=plan.space, feasible=plan.feasible, seed=self.settings.seed,
                                 objective=plan.objective, amounts=plan.meters.predict if plan.meters.by_metric else None)
        if prior is not None and hasattr(sampler, "learn_prior"):
            sampler.learn_prior(prior.rows, prior.accuracies)
        elif prior is not None:
            self.screen.status(f"prior     sampler={sampler.name} takes none: it is compared with the trainings, and that is all")
        return sampler

    def search(self, sampler: Any) -> SearchResult:
        plan, settings = self.plan, self.settings
        with self._progress("nas", "reward") as on_record:
            found = run_search(plan.space, plan.evaluator, sampler, plan.objective, trials=plan.trials, window=plan.window,
                               feasible=plan.feasible, seeds=range(settings.repeats), seed=settings.seed, on_record=on_record,
                               reduction=settings.reduction, survivors=max(plan.finalists, 1), measure=plan.meters.measure,
                               inside=plan.meters.inside, may_start=self.ledger.may_start if self.ledger else lambda rung: True,
                               **self._where())
        if found.stopped:
            self.screen.status(f"budget    no time for more: {found.rungs[0]} of {plan.trials} networks were begun")
        if found.stopped and not found.records:
            raise RunError(f"budget={settings.budget}: {parts.duration(self.clock.seconds)} went into what comes before the search, and "
                           "nothing is left for it; write a larger budget, or leave out audit or prior")
        if found.best is None and not found.interrupted:
            raise RunError(f"{self.folder}: no evaluation succeeded; the causes are in {self.folder}/records.jsonl")
        return parts.unless_interrupted(found)

    def verdict(self, found: SearchResult) -> Any:
        """The best networks trained again beside the stock baseline, where candidates are trained."""
        plan, settings = self.plan, self.settings
        if not plan.finalists:
            return None
        from scalesearch.studies.finalists import fresh_seeds, run_finalists

        chosen = [record.network for record in found.ranked[:plan.finalists]]
        meter = plan.meters.window
        with self._progress("finalists", "accuracy") as on_record:
            return run_finalists(chosen, plan.final, plan.baseline, plan.space, plan.feasible, plan.objective,
                                 cost=None if meter is None else meter.predicted_cost, measured=None if meter is None else meter.cost,
                                 seeds=fresh_seeds(plan.final_seeds, range(settings.repeats)), measure=plan.meters.measure,
                                 same_schedule=plan.same_schedule, on_record=on_record, seed=settings.seed,
                                 promised={record.id: mean_accuracy(found, record) for record in found.ranked[:plan.finalists]},
                                 **self._where())

    def summarise(self, found: SearchResult, baseline: Sequence[Record], audit: Any, prior: Any, sampler: Any,
                  verdict: Any) -> dict[str, Any]:
        """The command's JSON object: winner, baseline, how the search went, and what it bought."""
        plan = self.plan
        assert found.best is not None
        chosen = found.best.network if verdict is None else verdict.network
        winner = chosen.replace(name=f"{self.folder.name}-best")
        rung = next(record.rung for record in found.ranked if record.id == winner.id)
        evaluated = [record for record in found.records if record.id == winner.id and record.rung == rung]
        failures = [record for record in found.records if not record.ok]
        result = {
            "run": str(self.folder), "evaluations": found.rungs[0] - len({record.id for record in failures if not record.rung}),
            "feasible_networks": plan.feasible.lower if plan.feasible.exact else None,
            "feasible_bounds": [plan.feasible.lower, plan.feasible.upper], "target_flops": plan.target_flops,
            "target": {"metric": plan.budget.metric.name, "amount": plan.budget.amount},
            "window": [plan.window.low, plan.window.high] if plan.window else None,
            "evaluator": plan.evaluator.name, "note": plan.evaluator.note, "reward": str(plan.objective),
            "best": parts.network_summary(winner, evaluated), "baseline": parts.network_summary(plan.baseline, baseline),
            "failures": len(failures), "rejected": found.rejected, "drawn": found.drawn,
            "seconds": parts.seconds_in_all(self.folder, found.seconds, found.evaluated),
            "training_macs": sum(record.training_macs for record in self.records)}
        if len(found.rungs) > 1:
            result["rungs"] = {"fidelity": plan.evaluator.fidelity, "shares": list(plan.evaluator.rungs),
                               "reduction": self.settings.reduction, "networks": list(found.rungs)}
        result.update({key: to_mapping(value) for key, value in {"audit": audit, "verdict": verdict}.items() if value is not None})
        if prior is not None:
            result["prior"] = self.prior_summary(prior, found)
        if plan.meters.by_metric:
            result["measured"] = measured_summary(plan, winner)
        if self.ledger is not None:
            trained_here = prior is not None and nas_bill.pays_supernet(self.folder)
            result["plan"] = to_mapping(settle(self.ledger.bill, self.records, self.clock.seconds,
                                               {"prior": prior.supernet.seconds} if trained_here else {}))
            self.clock.tick(always=True)
        result["bought"] = to_mapping(self.bought(found, sampler))
        if hasattr(plan.evaluator, "verify"):
            result.update(self.second_opinion(result, winner))
        return result

    def prior_summary(self, prior: Any, found: SearchResult) -> dict[str, Any]:
        """How the supernet's ranking agrees with the trainings of the highest rung that has enough of them."""
        from scalesearch.rank_correlation import FEWEST
        from scalesearch.studies.prior import agreement

        groups = [[record for record in found.records if record.ok and record.rung == rung] for rung in range(len(found.rungs))]
        rung = next((rung for rung in reversed(range(len(groups))) if len({r.id for r in groups[rung]}) >= FEWEST), 0)
        alone = {record.id: mean_accuracy(found, record) for record in groups[rung]}
        networks = list({record.id: record.network for record in groups[rung]}.values())
        compared = agreement(nas_bill.supernet_evaluator(self.plan, self.settings), networks, [alone[network.id] for network in networks],
                             **self._where())
        return {"name": prior.name, "networks": len(prior.rows), "seconds": prior.seconds + prior.supernet.seconds,
                "supernet": to_mapping(prior.supernet), "rung": rung, "compared": compared.n,
                "tau": compared.tau if compared.tau == compared.tau else None,
                "tau_interval": None if compared.interval is None else list(compared.interval)}

    def bought(self, found: SearchResult, sampler: Any) -> Bought:
        return what_it_bought(found.records, self.plan.space, self.plan.feasible, self.plan.evaluator, self.plan.objective,
                              sampler=sampler, amounts=self.plan.meters.predict, seed=self.settings.seed,
                              startup=int(getattr(sampler, "startup", 0)))

    def second_opinion(self, result: dict[str, Any], winner: Architecture) -> dict[str, Any]:
        """What a model that the search did not climb says of winner, baseline, and the best of as many uniform draws."""
        verify = self.plan.evaluator.verify
        result["best"]["verified_accuracy"] = verify(winner).accuracy
        result["baseline"]["verified_accuracy"] = verify(self.plan.baseline).accuracy
        return {"random": random_search(self.plan, result["evaluations"])}

    def _where(self) -> dict[str, Any]:
        return {"records": self.records, "executor": self.executor, "workers": self.plan.workers, "folder": self.folder}

    @contextmanager
    def _progress(self, label: str, shown: str) -> Iterator[OnRecord]:
        """A bar with the best so far; the ledger hears of every evaluation."""
        best: list[float] = []
        with self.screen.progress(1, label) as bar:

            def on_record(record: Record, done: int, total: int) -> None:
                value = getattr(record, shown)
                best.extend([] if value is None else [value])
                if self.ledger is not None:
                    self.ledger.add(record)
                    self.clock.tick()
                bar.set(done, f"best {shown} {max(best):.4f}" if best else None, total)

            yield on_record


def mean_accuracy(found: SearchResult, of: Record) -> float:
    """Over the seeds, of this record's network at its rung."""
    values = [r.accuracy for r in found.records if (r.id, r.rung) == (of.id, of.rung) and r.accuracy is not None]
    return sum(values) / len(values)


def measured_summary(plan: Plan, winner: Architecture) -> dict[str, Any]:
    """What was measured: the meters, and the winner measured once more, when nothing else runs."""
    from scalesearch.training.timing import measure

    rows = {}
    for name, meter in plan.meters.by_metric.items():
        again = measure(winner, meter.setup, meter.reference, meter.measure(meter.reference).median)
        cost = meter.metric.units(again.median)
        rows[name] = {**meter.to_mapping(), "winner": {"predicted": meter.metric.amount(meter.predicted_cost(winner)),
                                                      "measured": to_mapping(meter.measure(winner)), "again": to_mapping(again),
                                                      "inside": None if meter.window is None else cost in meter.window}}
    return rows


def random_search(plan: Plan, count: int) -> dict[str, Any]:
    """The best of as many uniform draws from the same window: what the search has to beat."""
    import numpy as np

    from scalesearch.candidates import Candidate

    draws = plan.feasible.random_draws(np.random.default_rng([0, STREAM]), count)
    drawn = [Candidate.of(plan.space.decode(values), "random") for values in draws]
    accuracies = [plan.evaluator.evaluate(network.architecture, seed=0).accuracy for network in drawn]
    needed = bool(plan.objective.metrics)
    rewards = [float(plan.objective(a, {**network.amounts, **(plan.meters.amounts(network.architecture) if needed else {})}))
               for a, network in zip(accuracies, drawn, strict=True)]
    top = int(np.argmax(rewards))
    best = drawn[top]
    return {"networks": count, "id": best.id, **best.amounts, "accuracy": accuracies[top], "reward": rewards[top],
            "verified_accuracy": plan.evaluator.verify(best.architecture).accuracy}


def write(result: dict[str, Any], found: SearchResult, plan: Plan, folder: Path, settings: NasSettings) -> None:
    from scalesearch.samplers.optuna_bridge import export_study

    winner = Architecture.from_mapping(result["best"]["architecture"])
    write_atomic(folder / "best.yaml", f"# best network of {folder}\n{winner.to_yaml()}")
    parts.write_json(folder / "result.json", result)
    export_study(found.records, plan.space, folder / "study.journal")
    if settings.report:
        from scalesearch.report import write_report

        result["report"] = str(write_report(folder))
        parts.write_json(folder / "result.json", result)
