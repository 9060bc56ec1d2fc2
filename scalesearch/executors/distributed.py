"""One training on all processes that torchrun started: the leader hands every job to the others and takes part itself."""

from __future__ import annotations

from scalesearch.evaluators import Evaluator
from scalesearch.executors import Job, run_job
from scalesearch.executors.inline import InlineExecutor
from scalesearch.training.distributed import join_world


class DistributedExecutor(InlineExecutor):
    """In the leading process, which records what comes out; the others call `follow`."""

    def submit(self, job: Job) -> None:
        join_world().broadcast(job)
        super().submit(job)

    def close(self) -> None:
        join_world().broadcast(None)
        super().close()


def follow(evaluator: Evaluator) -> None:
    """Take part in the leader's jobs until it has no more."""
    world = join_world()
    while (job := world.broadcast(None)) is not None:
        run_job(evaluator, job)
