"""Where an accuracy comes from: a model of one, or training the network on images."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from scalesearch.architecture import Architecture
from scalesearch.plugins import Table
from scalesearch.records import Evaluation, Failure

__all__ = ["EVALUATORS", "Evaluation", "Evaluator", "Failure", "rungs_of"]


class Evaluator(Protocol):
    """Tells the accuracy of a network. Subclass it for the defaults of `inline`, `note` and `check`.

    fingerprint   12 hex digits: a hash of everything but the seed that changes the result (images,
                  recipe, device type, model file). Evaluations of one fingerprint are comparable,
                  and none is done twice.
    inline        True: takes microseconds, runs in the driver's process; False: in worker
                  processes, so the object must pickle
    note          one line shown wherever its accuracies are
    rungs         shares of a whole evaluation after which it can pause and tell an accuracy, the last is 1
    """

    name: str
    fingerprint: str
    inline: bool = False
    note: str = ""
    rungs: tuple[float, ...] = (1.0,)

    def check(self, architecture: Architecture) -> None:
        """EvaluatorError in one line when this evaluator does not cover the network; it ends the search."""

    def evaluate(self, architecture: Architecture, *, seed: int, folder: Path | None = None, rung: int = -1) -> Evaluation:
        """Accuracy of the network at a seed, after `rungs[rung]` of the whole. Whatever it raises becomes a recorded failure.

        `folder` is the candidate's own, for checkpoints and histories; it may not exist yet. None: keep nothing.
        An evaluator of one rung need not take `rung`.
        """
        ...


def rungs_of(evaluator: Evaluator) -> tuple[float, ...]:
    """Its `rungs`; one, the whole, for an evaluator that has no such attribute."""
    return getattr(evaluator, "rungs", (1.0,))


EVALUATORS = Table("evaluator", {
    "supernet": "scalesearch.evaluators.supernet:SupernetEvaluator",
    "surrogate": "scalesearch.evaluators.surrogate:SurrogateEvaluator",
    "trained": "scalesearch.evaluators.trained:TrainedEvaluator",
})
