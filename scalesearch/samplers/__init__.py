"""Who proposes the next network. A sampler is asked for values and told what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from scalesearch.plugins import Table

__all__ = ["SAMPLERS", "Outcome", "Sampler"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a network: mean accuracy and reward over its seeds, and its multiply-adds.

    share     of the whole evaluation after which this was measured: 1 at the last rung
    amounts   all that is known of its cost, the measured amounts included
    """

    accuracy: float
    reward: float
    macs: int
    share: float = 1.0
    amounts: Mapping[str, float] = field(default_factory=dict)


class Sampler(Protocol):
    """Proposes values of a space; the driver knows cost, window and repeats, and tells it.

    `name` becomes the origin of its records. A sampler is built with those of `space`, `feasible`
    (the FeasibleSet of the window, or None), `seed`, `objective` and `amounts` (rows of values →
    arrays of what they cost) that its signature names; equal seeds and equal answers give equal
    proposals. Optional:

    exhaustive    True for one that goes through all values and returns None at the end; it is never
                  replaced by draws from the window
    fidelities    True for one that is told of a network after every rung, with its share; the others
                  are told once, after the first rung, where all networks are comparable
    recommend(count)    values of the networks that it believes best, best first
    predict(rows)       mean and deviation of the accuracy at share 1
    importances()       by parameter, the share of the predicted accuracy's variance
    learn_prior(rows, accuracies)    cheap scores to start from, such as a supernet's
    """

    name: str

    def ask(self) -> dict[str, Any] | None:
        """Values of every parameter; None: there are no more."""
        ...

    def tell(self, values: Mapping[str, Any], outcome: Outcome | None) -> None:
        """What came of these values; None: refused (outside the window, a repeat) or failed.

        Also called for values that were never asked: draws from the window, and records of an earlier run.
        """
        ...


SAMPLERS = Table("sampler", {
    "cmaes": "scalesearch.samplers.optuna_bridge:CmaEsSampler",
    "enumerate": "scalesearch.samplers.enumerate:EnumerateSampler",
    "evolution": "scalesearch.samplers.evolution:EvolutionSampler",
    "gp": "scalesearch.samplers.optuna_bridge:GPSampler",
    "local": "scalesearch.samplers.local:LocalSampler",
    "nsga2": "scalesearch.samplers.optuna_bridge:NSGA2Sampler",
    "predictor": "scalesearch.samplers.predictor:PredictorSampler",
    "random": "scalesearch.samplers.uniform:RandomSampler",
    "tpe": "scalesearch.samplers.optuna_bridge:TPESampler",
})
