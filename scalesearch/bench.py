"""Evaluates networks at every seed, rung by rung, and records what comes out. What is on record is not done again.

Searches, audits and finalists of one run share its records. An evaluation that another of them has made
is taken over: its accuracy is recorded once more under this origin, at no cost, with the reward of
this objective. So the records of an origin are all that it saw, in the order in which it saw it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scalesearch.architecture import Architecture
from scalesearch.candidates import Candidate
from scalesearch.config import to_mapping
from scalesearch.errors import EvaluatorError, RunError
from scalesearch.evaluators import Evaluator, rungs_of
from scalesearch.executors import Executor, Job, load_executor
from scalesearch.objective import Objective
from scalesearch.records import Evaluation, Failure, Key, Record, RecordFile, now

# So many evaluations that all fail have one cause, and it is not the networks.
HOPELESS = 3

OnRecord = Callable[[Record, int, int], None]
Measure = Callable[[Architecture], Mapping[str, float]]
Done = tuple[Candidate, int, list[Record]]
"""A network, the rung that it finished, and its record at every seed."""


class Bench:
    """`submit` starts a network's evaluations at a rung, `collect` hands over the networks that are complete.

    origins   under which the networks that come here are recorded
    total     evaluations that are expected, for `on_record`
    measure   what the objective needs beside multiply-adds and parameters
    """

    def __init__(self, evaluator: Evaluator, objective: Objective, records: RecordFile, seeds: Sequence[int], origins: Sequence[str],
                 executor: Executor | Mapping[str, Any] | str | None, workers: int, folder: Path | None, on_record: OnRecord | None,
                 total: int, measure: Measure | None = None) -> None:
        self.known: dict[Key, Record] = {}  # of these origins
        self.evaluated = 0
        self._others: dict[Key, Record] = {}  # of the rest of the run
        self._origins = tuple(origins)
        self._evaluator = evaluator
        self._objective = objective
        self._file = records
        self._seeds = tuple(seeds)
        self._executor = load_executor(executor, workers, getattr(evaluator, "inline", False))
        self._lent = self._executor is executor
        self._folder = None if getattr(evaluator, "inline", False) else folder
        self._on_record = on_record
        self._total = total
        self._measure = measure
        self._here: dict[tuple[str, int], Candidate] = {}  # still to be evaluated, or not yet handed over
        self._own: dict[Key, Record] = {}  # evaluations of the networks that came here, in the order they finished
        self._claimed: set[Key] = set()
        self._queue: deque[Job] = deque()
        self._running: dict[int, tuple[Candidate, str]] = {}

    def __enter__(self) -> Bench:
        with ExitStack() as undo:
            undo.enter_context(self._file)
            self._number = 0
            for record in self._file:
                (self.known if record.origin in self._origins else self._others).setdefault(record.key, record)
                self._number = max(self._number, record.number + 1)
            if not self._lent:
                undo.callback(self._executor.close)
            self._executor.start(self._evaluator)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    @property
    def busy(self) -> bool:
        """Whether evaluations are under way."""
        return bool(self._running or self._queue)

    def key(self, network: str, seed: int, rung: int) -> Key:
        return (network, self._evaluator.fingerprint, seed, rung)

    def recorded(self, network: str, rung: int) -> bool:
        """Whether these origins have seen it at this rung, at every seed."""
        return all(self.key(network, seed, rung) in self.known for seed in self._seeds)

    def complete(self, network: str, rung: int) -> bool:
        """Whether it costs nothing: it is on record, whoever saw it."""
        return all(key in self.known or key in self._others for key in (self.key(network, seed, rung) for seed in self._seeds))

    def found(self) -> tuple[Record, ...]:
        """The records of all networks that came here, in the order in which they finished."""
        return tuple(self._own.values())

    def history(self) -> list[Candidate]:
        """Networks of these origins on file, in the order of their first record."""
        firsts: dict[str, Record] = {}
        for record in self.known.values():
            if record.seed in self._seeds and record.key == self.key(record.id, record.seed, 0):
                firsts.setdefault(record.id, record)
        return [Candidate.of(record.network, record.origin, record.values) for record in firsts.values()]

    def submit(self, network: Candidate, rung: int) -> None:
        """Start the evaluations of this network at this rung that are not on record."""
        self._evaluator.check(network.architecture)
        self._here[network.id, rung] = network
        for seed in self._seeds:
            key = self.key(network.id, seed, rung)
            if key in self._others and key not in self.known:
                self._take_over(network, self._others[key])
            if key in self.known:
                self._own.setdefault(key, self.known[key])
            elif key not in self._claimed:
                self._claimed.add(key)
                self._queue.append(Job(len(self._claimed), network.architecture, network.values, seed, rung,
                                       self._place(key), network.origin))
        self._fill()

    def collect(self) -> list[Done]:
        """Networks that are complete; waits until there is room for the next one."""
        while self._queue or (self._running and not self._executor.idle):
            self._receive()
        return self._complete()

    def wait(self) -> list[Done]:
        """Networks that are complete; waits for one where evaluations are under way."""
        while not (done := self._complete()) and self.busy:
            self._receive()
        return done

    def drain(self) -> Iterator[Done]:
        """The networks still here, as they become complete."""
        while done := self.wait():
            yield from done

    def _complete(self) -> list[Done]:
        ready = [(id, rung) for id, rung in self._here if self.recorded(id, rung)]
        return [(self._here.pop(place), place[1], [self.known[self.key(place[0], seed, place[1])] for seed in self._seeds])
                for place in ready]

    def _fill(self) -> None:
        while self._queue and self._executor.idle:
            job = self._queue.popleft()
            self._running[job.number] = (self._here[job.architecture.id, job.rung], now())
            self._executor.submit(job)

    def _receive(self) -> None:
        for job, result, worker in self._executor.wait():
            network, started = self._running.pop(job.number)
            self._record(network, job, _checked(result), worker, started)
            self._stop_if_hopeless(job.rung)
        self._fill()

    def _stop_if_hopeless(self, rung: int) -> None:
        here = [record for record in self._own.values() if record.rung == rung]
        failed = {record.id for record in here}
        if len(failed) >= HOPELESS and not any(record.ok for record in here):
            where = f" at rung {rung + 1} of {len(rungs_of(self._evaluator))}" if rung else ""
            raise RunError(f"the first {len(failed)} networks{where} all failed: {here[-1].failure}")

    def _record(self, network: Candidate, job: Job, result: Evaluation | Failure, worker: str, started: str) -> None:
        self._append(self._make_record(network, job, result, worker, started))
        self.evaluated += 1
        if self._on_record is not None:
            self._on_record(list(self._own.values())[-1], len(self._own), max(self._total, len(self._own)))

    def _append(self, record: Record) -> None:
        self._file.append(record)
        self._number += 1
        self.known[record.key] = self._own[record.key] = record

    def _take_over(self, network: Candidate, record: Record) -> None:
        """Record what another origin has evaluated, at no cost."""
        if record.accuracy is None:
            result: Evaluation | Failure = Failure(record.failure or "")
        else:
            result = Evaluation(record.accuracy, record.deviation, 0.0, 0.0, record.device,
                                {**record.details, "evaluated_as": record.origin})
        job = Job(0, network.architecture, network.values, record.seed, record.rung, None, network.origin)
        self._append(self._make_record(network, job, result, record.worker, now()))

    def _make_record(self, network: Candidate, job: Job, result: Evaluation | Failure, worker: str, started: str) -> Record:
        cost, measured = network.cost, dict[str, float]()
        if self._measure is not None and not isinstance(result, Failure):
            try:
                measured = dict(self._measure(network.architecture))
            except EvaluatorError as error:  # out of memory, say
                result = Failure(str(error), result.seconds)
        shared: dict[str, Any] = dict(
            number=self._number, id=network.id, fingerprint=self._evaluator.fingerprint, seed=job.seed, rung=job.rung,
            values=dict(network.values), architecture=to_mapping(network.architecture), macs=cost.macs, params=cost.params,
            activations=cost.activations, resolution=cost.resolution, origin=network.origin, started=started, finished=now(),
            worker=worker, seconds=result.seconds)
        if isinstance(result, Failure):
            return Record(**shared, accuracy=None, deviation=None, reward=None, failure=result.cause, training_macs=0.0, device="")
        accuracy = float(result.accuracy)
        return Record(**shared, accuracy=accuracy, deviation=None if result.deviation is None else float(result.deviation),
                      reward=float(self._objective(accuracy, {**network.amounts, **measured})), failure=None,
                      training_macs=float(result.training_macs), device=result.device, details=result.details, measured=measured)

    def _place(self, key: Key) -> Path | None:
        """The folder of one network at one seed, whatever the rung."""
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
