"""The search: ask, decode, cost, evaluate, record, tell.

Several evaluations are in flight at a time; the sampler is told as they come in. A proposal outside
the window, or of a network that the search has already, costs a look-up and no trial.

Continuing a run asks the sampler, seeded as before, for what is on record, and tells it what came of
it then. While its proposals are the recorded ones this is the uninterrupted search, random numbers
included; so it is to the end with one worker or an inline evaluator. With several workers results
came in an order that chance decided: from the first proposal that differs on, the sampler is told
the remaining records in their order and goes on from there. Nothing on record is evaluated again.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalesearch.architecture import Architecture, Block, blocks
from scalesearch.config import to_mapping
from scalesearch.cost import Cost, cost_of
from scalesearch.errors import RunError, SpaceError
from scalesearch.evaluators import Evaluator
from scalesearch.executors import Executor, Job, load_executor
from scalesearch.objective import Window
from scalesearch.records import Evaluation, Failure, Key, Record, RecordFile, now
from scalesearch.samplers import Outcome, Sampler
from scalesearch.spaces import Space
from scalesearch.spaces.feasible import FeasibleSet, feasible_set

DRAW = "in-window draw"

# So many evaluations that all fail have one cause, and it is not the networks.
HOPELESS = 3

Objective = Callable[[float, int], float]
OnRecord = Callable[[Record, int, int], None]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    records      of the networks that the sampler proposed or the window gave, in the order they finished
    best         of the network with the highest mean reward over its seeds (the record of its first
                 seed); None when nothing succeeded
    rejected     proposals that were outside the window or repeated; they cost no trial
    drawn        networks drawn from the window after too many rejects in a row
    evaluated    evaluations of this call; resumed: those found on record
    exhausted    there are no more networks; interrupted: by Ctrl-C
    """

    records: tuple[Record, ...]
    best: Record | None
    proposals: int
    rejected: int
    drawn: int
    evaluated: int
    resumed: int
    seconds: float
    exhausted: bool = False
    interrupted: bool = False


def run_search(space: Space, evaluator: Evaluator, sampler: Sampler, objective: Objective, *, records: RecordFile, trials: int,
               window: Window | None = None, feasible: FeasibleSet | None = None, seeds: Sequence[int] = (0,),
               executor: Executor | Mapping[str, Any] | str | None = None, workers: int = 1, folder: Path | None = None,
               seed: int = 0, on_record: OnRecord | None = None, max_rejects: int = 10) -> SearchResult:
    """Search until `trials` networks of the window are evaluated at every seed, or there are no more.

    trials       networks in all, those already in `records` and those that failed included
    feasible     the networks of the window; made from it where not given
    seeds        every network is evaluated at each; the sampler is told the mean
    executor     settings, or an object, which is left open for the next search; None: `workers` local
                 processes. 0 workers: in this process
    folder       of the run: candidates keep their files under it
    seed         of the in-window draws
    on_record    called with (record, evaluations done, evaluations in all) after each
    max_rejects  proposals refused in a row before a network is drawn from the window

    A failed evaluation is a record with its cause and does not end the search; RunError when the
    first few all fail. Ctrl-C ends it with what is recorded. BudgetError when the window is empty.
    """
    started = time.monotonic()
    feasible = feasible if feasible is not None or window is None else feasible_set(space, window)
    source = _Source(space, sampler, window, feasible, seed, max_rejects)
    bench = _Bench(evaluator, objective, records, seeds, executor, workers, folder, on_record, trials)
    interrupted = False
    with bench:
        try:
            _resume(source, bench, sampler, trials)
            while source.accepted < trials and (network := source.propose()) is not None:  # ask, decode, cost, check
                bench.submit(network)  # evaluate
                _tell(sampler, bench.collect())  # record, tell
            _tell(sampler, bench.drain())
        except KeyboardInterrupt:
            interrupted = True
    found = bench.found()
    return SearchResult(found, best_of(found, seeds), source.accepted, source.rejected, source.drawn, bench.evaluated,
                        len(found) - bench.evaluated, time.monotonic() - started, source.exhausted, interrupted)


def evaluate_networks(architectures: Sequence[Architecture], evaluator: Evaluator, objective: Objective, *, records: RecordFile,
                      origin: str = "listed", values: Sequence[Mapping[str, Any]] | None = None, seeds: Sequence[int] = (0,),
                      executor: Executor | Mapping[str, Any] | str | None = None, workers: int = 1, folder: Path | None = None,
                      on_record: OnRecord | None = None) -> list[Record]:
    """Evaluate these networks at every seed, on the same path as a search; those on record are not done again.

    `values` are what each decodes from, in its space. Returns the records of the first network, of
    the second, and so on; a failed evaluation is a record with its cause.
    """
    given = [{} for _ in architectures] if values is None else values
    networks = [_Network(v, a, cost_of(a), origin) for a, v in zip(architectures, given, strict=True)]
    bench = _Bench(evaluator, objective, records, seeds, executor, workers, folder, on_record,
                   len({network.id for network in networks}))
    for network in networks:
        evaluator.check(network.architecture)
    with bench:
        for network in networks:
            bench.submit(network)
            bench.collect()
        for _ in bench.drain():
            pass
    return [bench.known[bench.key(network.id, s)] for network in networks for s in seeds]


def best_of(records: Iterable[Record], seeds: Sequence[int] = (0,)) -> Record | None:
    """The record, at its first seed, of the network with the highest mean reward; one with a failed seed is none."""
    networks: dict[str, list[Record]] = {}
    for record in records:
        networks.setdefault(record.id, []).append(record)
    complete = [group for group in networks.values() if _outcome(group) is not None and {r.seed for r in group} >= set(seeds)]
    best = max(complete, key=lambda group: sum(r.reward or 0.0 for r in group) / len(group), default=None)
    return None if best is None else min(best, key=lambda record: record.seed)


@dataclass(frozen=True)
class _Network:
    """A candidate on its way through the search."""

    values: Mapping[str, Any]
    architecture: Architecture
    cost: Cost
    origin: str

    @property
    def id(self) -> str:
        return self.architecture.id

    @property
    def blocks(self) -> tuple[Block, ...]:
        """What is built: two descriptions with the same blocks are one network."""
        return blocks(self.architecture)


def _tell(sampler: Sampler, done: Iterable[tuple[_Network, list[Record]]]) -> None:
    for network, records in done:
        sampler.tell(network.values, _outcome(records))


def _outcome(records: Sequence[Record]) -> Outcome | None:
    """Means over the seeds of one network; None when one of them failed: a mean of the lucky seeds would flatter it."""
    accuracies = [r.accuracy for r in records if r.accuracy is not None]
    rewards = [r.reward for r in records if r.reward is not None]
    if len(rewards) < len(records) or not records:
        return None
    return Outcome(sum(accuracies) / len(accuracies), sum(rewards) / len(rewards), records[0].macs)


def _resume(source: _Source, bench: _Bench, sampler: Sampler, trials: int) -> None:
    """Bring sampler and window to where the records are; evaluations that were cut off are done."""
    history = deque(bench.history({source.name, DRAW}))
    replay = len(history) < trials or not all(bench.complete(network.id) for network in history)
    while history and replay:
        network = source.propose()
        if network is None or network.blocks != history[0].blocks:
            source.put_back(network, history)
            break
        history.popleft()
        bench.submit(network)
        _tell(sampler, bench.collect())
    source.adopt(history)
    for network in history:
        bench.submit(network)
        _tell(sampler, bench.collect())


@dataclass
class _Source:
    """Where new networks come from: the sampler's proposals, and draws when too many are refused."""

    space: Space
    sampler: Sampler
    window: Window | None
    feasible: FeasibleSet | None
    seed: int
    max_rejects: int
    seen: set[tuple[Block, ...]] = field(default_factory=set)
    rejected: int = 0
    drawn: int = 0
    exhausted: bool = False
    _kept: _Network | None = None
    _rng: Any = None
    _undecodable: SpaceError | None = None

    @property
    def name(self) -> str:
        """What the records of the sampler's proposals give as their origin."""
        return str(getattr(self.sampler, "name", type(self.sampler).__name__))

    @property
    def accepted(self) -> int:
        return len(self.seen)

    def propose(self) -> _Network | None:
        """The next network of the window that the search does not have; None: there are no more."""
        kept, self._kept = self._kept, None
        if kept is not None:
            return self._accept(kept)
        # A sampler that goes through everything is asked until it ends; others may be stuck.
        patience = math.inf if getattr(self.sampler, "exhaustive", False) else self.max_rejects
        refused = 0
        while not self._all_seen() and refused < patience and (values := self.sampler.ask()) is not None:
            network = self._decode(values, self.name)
            if network is not None and self._is_new(network):
                return self._accept(network)
            self.sampler.tell(values, None)
            refused += 1
            self.rejected += 1
        drawn = self._draw() if refused >= patience and not self._all_seen() else None
        self.exhausted = drawn is None
        return drawn

    def put_back(self, network: _Network | None, others: Iterable[_Network]) -> None:
        """Propose this network again next time, unless it is one of the others."""
        if network is None:
            return
        self.seen.discard(network.blocks)
        self.drawn -= network.origin == DRAW
        if network.blocks in {other.blocks for other in others}:
            self.sampler.tell(network.values, None)
        else:
            self._kept = network

    def adopt(self, networks: Iterable[_Network]) -> None:
        """These networks are the search's own without being proposed again."""
        self.seen.update(network.blocks for network in networks)

    def _decode(self, values: Mapping[str, Any], origin: str) -> _Network | None:
        """The network, or None where a space has values that are no network."""
        try:
            architecture = self.space.decode(values)
        except SpaceError as error:
            self._undecodable = error
            return None
        return _Network(values, architecture, cost_of(architecture), origin)

    def _is_new(self, network: _Network) -> bool:
        return (self.window is None or network.cost.macs in self.window) and network.blocks not in self.seen

    def _accept(self, network: _Network) -> _Network:
        self.seen.add(network.blocks)
        self.drawn += network.origin == DRAW
        return network

    def _all_seen(self) -> bool:
        """Certain only where the networks are counted."""
        count = self._count()
        return count is not None and len(self.seen) >= count

    def _count(self) -> int | None:
        source, attribute = (self.space, "size") if self.feasible is None else (self.feasible, "upper")
        return getattr(source, attribute, None)

    def _draw(self) -> _Network | None:
        """A uniform draw from the window that is new; None after so many that none can be left, or very few."""
        if self._rng is None:
            import numpy as np

            self._rng = np.random.default_rng(self.seed)
        count = self._count()
        for _ in range(max(1000, 10 * count if count is not None and count <= 10_000 else 0)):
            network = self._decode(self._draw_values(), DRAW)
            if network is not None and self._is_new(network):
                return self._accept(network)
        if self._undecodable is not None and not self.seen:
            raise self._undecodable
        return None

    def _draw_values(self) -> dict[str, Any]:
        if self.feasible is not None:
            return dict(self.feasible.draw(self._rng))
        return {p.name: p.choices[int(self._rng.integers(len(p.choices)))] for p in self.space.parameters}


class _Bench:
    """Evaluates networks at every seed and records what comes out. What is on record is not done again."""

    def __init__(self, evaluator: Evaluator, objective: Objective, records: RecordFile, seeds: Sequence[int],
                 executor: Executor | Mapping[str, Any] | str | None, workers: int, folder: Path | None, on_record: OnRecord | None,
                 networks: int) -> None:
        self.known: dict[Key, Record] = {}  # everything on file
        self.evaluated = 0
        self._evaluator = evaluator
        self._objective = objective
        self._file = records
        self._seeds = tuple(seeds)
        self._executor = load_executor(executor, workers, getattr(evaluator, "inline", False))
        self._lent = self._executor is executor
        self._folder = None if getattr(evaluator, "inline", False) else folder
        self._on_record = on_record
        self._total = networks * len(self._seeds)
        self._here: dict[str, _Network] = {}  # networks with an evaluation still to come, or not yet handed over
        self._own: dict[Key, Record] = {}  # evaluations of the networks that came here, in the order they finished
        self._claimed: set[Key] = set()
        self._queue: deque[Job] = deque()
        self._running: dict[int, tuple[_Network, str]] = {}
        self._failed: set[str] = set()

    def __enter__(self) -> _Bench:
        with ExitStack() as undo:
            undo.enter_context(self._file)
            self.known = {record.key: record for record in self._file}
            self._number = 1 + max((record.number for record in self.known.values()), default=-1)
            if not self._lent:
                undo.callback(self._executor.close)
            self._executor.start(self._evaluator)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def key(self, network: str, seed: int) -> Key:
        return (network, self._evaluator.fingerprint, seed, 0)

    def complete(self, network: str) -> bool:
        return all(self.key(network, seed) in self.known for seed in self._seeds)

    def found(self) -> tuple[Record, ...]:
        """The records of all networks that came here, in the order in which they finished."""
        return tuple(self._own.values())

    def history(self, origins: Container[str]) -> list[_Network]:
        """Networks of these origins on file, in the order of their first record."""
        firsts: dict[str, Record] = {}
        for record in self.known.values():
            if record.origin in origins and record.seed in self._seeds and record.key == self.key(record.id, record.seed):
                firsts.setdefault(record.id, record)
        networks = [(record, record.network) for record in firsts.values()]
        return [_Network(record.values, network, cost_of(network), record.origin) for record, network in networks]

    def submit(self, network: _Network) -> None:
        """Start the evaluations of this network that are not on record."""
        self._evaluator.check(network.architecture)
        self._here[network.id] = network
        for seed in self._seeds:
            key = self.key(network.id, seed)
            if key in self.known:
                self._own.setdefault(key, self.known[key])
            elif key not in self._claimed:
                self._claimed.add(key)
                self._queue.append(Job(len(self._claimed), network.architecture, network.values, seed, 0,
                                       self._place(key), network.origin))
        self._fill()

    def collect(self) -> list[tuple[_Network, list[Record]]]:
        """Networks that are complete; waits until there is room for the next one."""
        while self._queue or (self._running and not self._executor.idle):
            self._receive()
        return [self._hand_over(id) for id in list(self._here) if self.complete(id)]

    def drain(self) -> Iterator[tuple[_Network, list[Record]]]:
        """The networks still here, as they become complete."""
        yield from self.collect()
        while self._running:
            self._receive()
            yield from self.collect()

    def _hand_over(self, id: str) -> tuple[_Network, list[Record]]:
        return self._here.pop(id), [self.known[self.key(id, seed)] for seed in self._seeds]

    def _fill(self) -> None:
        while self._queue and self._executor.idle:
            job = self._queue.popleft()
            self._running[job.number] = (self._here[job.architecture.id], now())
            self._executor.submit(job)

    def _receive(self) -> None:
        for job, result, worker in self._executor.wait():
            network, started = self._running.pop(job.number)
            self._record(network, job, _checked(result), worker, started)
        if len(self._failed) >= HOPELESS and not any(record.ok for record in self._own.values()):
            cause = [record.failure for record in self._own.values()][-1]
            raise RunError(f"the first {len(self._failed)} networks all failed: {cause}")
        self._fill()

    def _record(self, network: _Network, job: Job, result: Evaluation | Failure, worker: str, started: str) -> None:
        record = _record(self._number, network, job, result, self._evaluator.fingerprint, self._objective, worker, started)
        self._file.append(record)
        self._number += 1
        self.known[record.key] = self._own[record.key] = record
        self.evaluated += 1
        if not record.ok:
            self._failed.add(record.id)
        if self._on_record is not None:
            self._on_record(record, len(self._own), max(self._total, len(self._own)))

    def _place(self, key: Key) -> Path | None:
        """The folder of one evaluation."""
        return None if self._folder is None else self._folder / "candidates" / key[0] / f"{key[1]}-s{key[2]}"


def _checked(result: Evaluation | Failure) -> Evaluation | Failure:
    """An accuracy that is no fraction is a failure: not a number, or a percentage."""
    if isinstance(result, Failure):
        return result
    try:
        fraction = 0.0 <= float(result.accuracy) <= 1.0
    except (TypeError, ValueError):
        fraction = False
    return result if fraction else Failure(f"accuracy {result.accuracy} is not a fraction in [0, 1]", result.seconds)


def _record(number: int, network: _Network, job: Job, result: Evaluation | Failure, fingerprint: str, objective: Objective,
            worker: str, started: str) -> Record:
    cost = network.cost
    shared: dict[str, Any] = dict(
        number=number, id=network.id, fingerprint=fingerprint, seed=job.seed, rung=job.rung, values=dict(network.values),
        architecture=to_mapping(network.architecture), macs=cost.macs, params=cost.params, activations=cost.activations,
        resolution=cost.resolution, origin=network.origin, started=started, finished=now(), worker=worker, seconds=result.seconds)
    if isinstance(result, Failure):
        return Record(**shared, accuracy=None, deviation=None, reward=None, failure=result.cause, training_macs=0.0, device="")
    accuracy = float(result.accuracy)
    return Record(**shared, accuracy=accuracy, deviation=None if result.deviation is None else float(result.deviation),
                  reward=float(objective(accuracy, cost.macs)), failure=None, training_macs=float(result.training_macs),
                  device=result.device, details=result.details)
