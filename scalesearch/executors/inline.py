"""Evaluations in the driver's own process, one after another: for evaluators of microseconds, and for debugging."""

from __future__ import annotations

import os

from scalesearch.evaluators import Evaluator
from scalesearch.executors import Finished, Job, run_job


class InlineExecutor:
    """`submit` evaluates, `wait` hands the result over."""

    def __init__(self) -> None:
        self._evaluator: Evaluator | None = None
        self._finished: list[Finished] = []

    @property
    def idle(self) -> int:
        return 0 if self._finished else 1

    def start(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def submit(self, job: Job) -> None:
        assert self._evaluator is not None, "start comes before submit"
        self._finished.append(Finished(job, run_job(self._evaluator, job), f"inline:{os.getpid()}"))

    def wait(self, timeout: float | None = None) -> list[Finished]:
        finished, self._finished = self._finished, []
        return finished

    def close(self) -> None:
        self._evaluator = None
        self._finished = []
