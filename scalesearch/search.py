"""The search: ask, decode, cost, evaluate, record, tell.

Several evaluations are in flight at a time; the sampler is told as they come in. With an evaluator of
several rungs a network is evaluated rung by rung, and who is promoted comes before who is new.

Continuing a run asks the sampler, seeded as before, for what is on record, and tells it what came of
it then. While its proposals are the recorded ones this is the uninterrupted search, random numbers
included; so it is to the end with one worker or an inline evaluator. With several workers results
came in an order that chance decided: from the first proposal that differs on, the sampler is told
the remaining records in their order and goes on from there. Nothing on record is evaluated again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalesearch.architecture import Architecture
from scalesearch.bench import Bench, Done, Measure, OnRecord
from scalesearch.candidates import DRAW, Candidate, Candidates, Check
from scalesearch.evaluators import Evaluator, rungs_of
from scalesearch.executors import Executor
from scalesearch.objective import Objective, Window
from scalesearch.promotion import Goals, Ladder
from scalesearch.records import Record, RecordFile
from scalesearch.samplers import Outcome, Sampler
from scalesearch.spaces import Space
from scalesearch.spaces.feasible import FeasibleSet, feasible_set

MayStart = Callable[[int], bool]
"""Whether there is time left for an evaluation at this rung."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    records      of the networks that the sampler proposed or the window gave, in the order they finished
    ranked       of the networks at the highest rung that was finished, one each (its first seed), the
                 best first: as the sampler's model believes where it has one, else by mean reward
    rungs        networks that each rung has seen
    rejected     proposals that were outside the window or repeated; they cost no trial
    drawn        networks drawn from the window after too many rejects in a row
    evaluated    evaluations of this call; resumed: those found on record
    exhausted    there are no more networks; interrupted: by Ctrl-C; stopped: `may_start` said no
    """

    records: tuple[Record, ...]
    ranked: tuple[Record, ...]
    rungs: tuple[int, ...]
    proposals: int
    rejected: int
    drawn: int
    evaluated: int
    resumed: int
    seconds: float
    exhausted: bool = False
    interrupted: bool = False
    stopped: bool = False

    @property
    def best(self) -> Record | None:
        """The first of `ranked`; None when nothing succeeded."""
        return self.ranked[0] if self.ranked else None


def run_search(space: Space, evaluator: Evaluator, sampler: Sampler, objective: Objective, *, records: RecordFile, trials: int,
               window: Window | None = None, feasible: FeasibleSet | None = None, seeds: Sequence[int] = (0,),
               executor: Executor | Mapping[str, Any] | str | None = None, workers: int = 1, folder: Path | None = None,
               seed: int = 0, on_record: OnRecord | None = None, max_rejects: int = 10, reduction: float = 3.0, survivors: int = 1,
               measure: Measure | None = None, inside: Check | None = None, may_start: MayStart = lambda rung: True) -> SearchResult:
    """Search until `trials` networks of the window are evaluated at every seed, or there are no more.

    trials       networks in all, those already in `records` and those that failed included
    feasible     the networks of the window; made from it where not given
    seeds        every network is evaluated at each; the sampler is told the mean
    executor     settings, or an object, which is left open for the next search; None: `workers` local
                 processes. 0 workers: in this process
    folder       of the run: candidates keep their files under it
    seed         of the in-window draws
    on_record    called with (record, evaluations done, evaluations expected in all) after each
    max_rejects  proposals refused in a row before a network is drawn from the window
    reduction    with an evaluator of several rungs: of so many networks one goes on to the next
    survivors    networks that reach the last rung at least
    measure      a network's measured costs, where the objective needs them
    inside       asked of every network before it counts: whether its measured cost is in the window
    may_start    asked with its rung before every evaluation; no at rung 0 ends the proposals, at another the search

    A failed evaluation is a record with its cause and does not end the search; RunError when the
    first few all fail. Ctrl-C ends it with what is recorded. BudgetError when the window is empty.
    """
    started = time.monotonic()
    feasible = feasible if feasible is not None or window is None else feasible_set(space, window)
    ladder = Ladder(len(rungs_of(evaluator)), reduction, survivors)
    origins = (str(getattr(sampler, "name", type(sampler).__name__)), DRAW)
    bench = Bench(evaluator, objective, records, seeds, origins, executor, workers, folder, on_record,
                  sum(ladder.planned(trials)) * len(seeds), measure)
    candidates = Candidates(space, sampler, window, feasible, seed, max_rejects, inside)
    interrupted, stopped = False, False
    with bench:
        try:
            candidates.resume(bench.history(), trials)
            steps = _Steps(candidates, ladder, bench, trials, may_start)
            while (step := steps.next()) is not None or bench.busy:  # ask, decode, cost, check, or promote
                if step is not None:
                    bench.submit(*step)  # evaluate
                _report(sampler, ladder, objective, rungs_of(evaluator), bench.collect() if step else bench.wait())  # record, tell
            stopped = steps.stopped or steps.full
        except KeyboardInterrupt:
            interrupted = True
    found = bench.found()
    ranked = _recommended(sampler, space, found, seeds, len(rungs_of(evaluator)), getattr(evaluator, "inline", False))
    return SearchResult(found, ranked, tuple(ladder.counts()), candidates.accepted, candidates.rejected, candidates.drawn,
                        bench.evaluated, len(found) - bench.evaluated, time.monotonic() - started, candidates.exhausted,
                        interrupted, stopped)


def evaluate_networks(architectures: Sequence[Architecture], evaluator: Evaluator, objective: Objective, *, records: RecordFile,
                      origin: str = "listed", values: Sequence[Mapping[str, Any]] | None = None, seeds: Sequence[int] = (0,),
                      executor: Executor | Mapping[str, Any] | str | None = None, workers: int = 1, folder: Path | None = None,
                      on_record: OnRecord | None = None, measure: Measure | None = None, until: int = -1) -> list[Record]:
    """Evaluate these networks at every seed and rung, on the same path as a search; those on record are not done again.

    `values` are what each decodes from, in its space; `until` is the rung at which all pause, the
    last without it. Returns the records of that rung, of the first network, of the second, and so on;
    a failed evaluation is a record with its cause, and a network that failed at a rung has that record.
    """
    given = [{} for _ in architectures] if values is None else values
    networks = [Candidate.of(a, origin, v) for a, v in zip(architectures, given, strict=True)]
    rungs = range(len(rungs_of(evaluator)))[until] + 1
    bench = Bench(evaluator, objective, records, seeds, (origin,), executor, workers, folder, on_record,
                  len({network.id for network in networks}) * len(seeds) * rungs, measure)
    for network in networks:
        evaluator.check(network.architecture)
    last: dict[str, list[Record]] = {}

    def go_on(done: Iterable[Done]) -> None:
        for network, rung, found in done:
            last[network.id] = found
            if rung + 1 < rungs and all(record.ok for record in found):
                bench.submit(network, rung + 1)

    with bench:
        for network in networks:
            bench.submit(network, 0)
            go_on(bench.collect())
        for done in bench.drain():
            go_on([done])
    return [record for network in networks for record in last[network.id]]


def rank_networks(records: Iterable[Record], seeds: Sequence[int] = (0,)) -> list[Record]:
    """One record (at its first seed) of each network, the highest mean reward first; a network with a failed seed is none.

    Records are of one rung.
    """
    networks: dict[str, list[Record]] = {}
    for record in records:
        networks.setdefault(record.id, []).append(record)
    complete = [group for group in networks.values() if _outcome(group, 1.0) is not None and {r.seed for r in group} >= set(seeds)]
    complete.sort(key=lambda group: -sum(r.reward or 0.0 for r in group) / len(group))
    return [min(group, key=lambda record: record.seed) for group in complete]


@dataclass
class _Steps:
    """What comes next: who is promoted, else who is new, and when no new ones come, who fills the last places."""

    candidates: Candidates
    ladder: Ladder
    bench: Bench
    trials: int
    may_start: MayStart
    full: bool = False  # there is time for promotions, but for no new network
    stopped: bool = False
    networks: dict[str, Candidate] = field(default_factory=dict)

    def next(self) -> tuple[Candidate, int] | None:
        """A network and the rung to evaluate it at; None: nothing now."""
        if self.stopped:
            return None
        if (step := self.ladder.next(allowed=self.bench.recorded)) is not None:  # as the run that is continued did
            return self.networks[step[0]], step[1]
        if self.candidates.resuming:
            return self._new()
        if (kept := self._on_record()) is not None:
            return kept
        if (step := self.ladder.next()) is not None:
            return self._promote(step)
        if self.candidates.accepted < self.trials and not self.full:
            self.full = not self.may_start(0)
            if not self.full and (new := self._new()) is not None:
                return new
        return self._promote(self.ladder.next(closing=True))

    def _new(self) -> tuple[Candidate, int] | None:
        network = self.candidates.next()
        if network is None:
            return None
        self.networks[network.id] = network
        self.ladder.enter(network.id)
        return network, 0

    def _promote(self, step: tuple[str, int] | None) -> tuple[Candidate, int] | None:
        if step is None:
            return None
        self.stopped = not self.bench.complete(*step) and not self.may_start(step[1])
        return None if self.stopped else (self.networks[step[0]], step[1])

    def _on_record(self) -> tuple[Candidate, int] | None:
        """A promotion of the run that is continued which chance would not repeat."""
        for id, rung in self.ladder.waiting():
            if self.bench.recorded(id, rung + 1):
                self.ladder.promote(id, rung)
                return self.networks[id], rung + 1
        return None


def _report(sampler: Sampler, ladder: Ladder, objective: Objective, shares: Sequence[float], done: Iterable[Done]) -> None:
    """Tell ladder and sampler what came of a network at a rung."""
    for network, rung, records in done:
        outcome = _outcome(records, shares[rung])
        ladder.report(network.id, rung, None if outcome is None else goals_of(objective, outcome))
        if rung == 0 or getattr(sampler, "fidelities", False):
            sampler.tell(network.values, outcome)


def goals_of(objective: Objective, outcome: Outcome) -> Goals:
    """What is to be maximised: the reward, or the goals of an objective that has several."""
    goals = getattr(objective, "goals", None)
    return (outcome.reward,) if goals is None else tuple(float(goal) for goal in goals(outcome.accuracy, outcome.amounts))


def _outcome(records: Sequence[Record], share: float) -> Outcome | None:
    """Means over the seeds of one network; None when one of them failed: a mean of the lucky seeds would flatter it."""
    accuracies = [r.accuracy for r in records if r.accuracy is not None]
    rewards = [r.reward for r in records if r.reward is not None]
    if len(rewards) < len(records) or not records:
        return None
    first = records[0]
    return Outcome(sum(accuracies) / len(accuracies), sum(rewards) / len(rewards), first.macs, share,
                   {"macs": first.macs, "params": first.params, **first.measured})


def _recommended(sampler: Sampler, space: Space, found: Sequence[Record], seeds: Sequence[int], rungs: int,
                 exact: bool) -> tuple[Record, ...]:
    """The networks of the highest rung that was finished, the best first: in the sampler's order where it has an opinion.

    An exact evaluator needs no opinion. Each network is given by the record of its first seed.
    """
    for rung in reversed(range(rungs)):
        ranked = rank_networks([record for record in found if record.rung == rung], seeds)
        if ranked:
            break
    recommend = getattr(sampler, "recommend", None)
    if recommend is None or exact or not ranked:
        return tuple(ranked)
    by_id = {record.id: record for record in ranked}
    wanted = dict.fromkeys(space.decode(values).id for values in recommend(len(ranked)))
    return tuple(by_id[id] for id in dict.fromkeys([*(id for id in wanted if id in by_id), *by_id]))
