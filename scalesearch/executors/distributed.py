"""One training on all processes that torchrun started: the leader hands every job to the others and takes part itself."""

from __future__ import annotations

import os

from scalesearch.errors import ScalesearchError
from scalesearch.evaluators import Evaluator
from scalesearch.evaluators.trained import OutOfMemory
from scalesearch.executors import Finished, Job, cause_of
from scalesearch.executors.inline import InlineExecutor
from scalesearch.records import Evaluation, Failure
from scalesearch.training.distributed import join_world


class DistributedExecutor(InlineExecutor):
    """In the leading process, which records what comes out; the others call `follow`."""

    def submit(self, job: Job) -> None:
        assert self._evaluator is not None, "start comes before submit"
        join_world().broadcast(job)
        self._finished.append(Finished(job, _evaluate(self._evaluator, job), f"torchrun:{os.getpid()}"))

    def close(self) -> None:
        join_world().broadcast(None)
        super().close()


def follow(evaluator: Evaluator) -> None:
    """Take part in the leader's jobs until it has no more."""
    world = join_world()
    while (job := world.broadcast(None)) is not None:
        _evaluate(evaluator, job)


def _evaluate(evaluator: Evaluator, job: Job) -> Evaluation | Failure:
    """A mistake in the settings and a loss that is not finite befall all processes alike and end the job.

    Anything else befalls one of them while the others wait for it: it ends the process, and torchrun
    then ends the rest.
    """
    try:
        return evaluator.evaluate(job.architecture, seed=job.seed, folder=job.folder)
    except OutOfMemory:
        raise
    except ScalesearchError as error:
        return Failure(cause_of(error))
