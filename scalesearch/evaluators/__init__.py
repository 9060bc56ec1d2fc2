"""Where an accuracy comes from: a model of one, or training the network on images."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from scalesearch.architecture import Architecture
from scalesearch.plugins import Table
from scalesearch.records import Evaluation, Failure

__all__ = ["EVALUATORS", "Evaluation", "Evaluator", "Failure"]


class Evaluator(Protocol):
    """Tells the accuracy of a network. Subclass it for the defaults of `inline`, `note` and `check`.

    fingerprint   12 hex digits: a hash of everything but the seed that changes the result (images,
                  recipe, device type, model file). Evaluations of one fingerprint are comparable,
                  and none is done twice.
    inline        True: takes microseconds, runs in the driver's process; False: in worker
                  processes, so the object must pickle
    note          one line shown wherever its accuracies are
    """

    name: str
    fingerprint: str
    inline: bool = False
    note: str = ""

    def check(self, architecture: Architecture) -> None:
        """EvaluatorError in one line when this evaluator does not cover the network; it ends the search."""

    def evaluate(self, architecture: Architecture, *, seed: int, folder: Path | None = None) -> Evaluation:
        """Accuracy of the network at a seed. Whatever it raises becomes a recorded failure.

        `folder` is the candidate's own, for checkpoints and histories; it may not exist yet. None: keep nothing.
        """
        ...


EVALUATORS = Table("evaluator", {
    "surrogate": "scalesearch.evaluators.surrogate:SurrogateEvaluator",
    "trained": "scalesearch.evaluators.trained:TrainedEvaluator",
})
