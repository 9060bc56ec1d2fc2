"""Cheap scores before the first training: uniform in-window networks, judged by a supernet.

The scores rank networks; they are no accuracies of trained ones. A sampler that has `learn_prior`
takes them as the prior mean of its predictor, with a slope and an offset that the stand-alone
trainings correct. `agreement` says how far they deserve that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scalesearch.analysis import RankCorrelation
from scalesearch.architecture import Architecture, blocks
from scalesearch.errors import ConfigError, RunError
from scalesearch.evaluators.supernet import Spent, SupernetEvaluator
from scalesearch.executors import Executor
from scalesearch.objective import AccuracyReward
from scalesearch.rank_correlation import rank_agreement
from scalesearch.records import RecordFile
from scalesearch.screen import Screen
from scalesearch.search import evaluate_networks
from scalesearch.spaces.feasible import FeasibleSet
from scalesearch.studies import parts

STREAM = 3  # of random draws, beside the sampler's own from the same seed
ORIGIN = "prior"

# Draws of networks that came before, in a row, after which the window holds no others.
_PATIENCE = 1000


@dataclass(frozen=True)
class Prior:
    """What a supernet says of some networks of the window.

    rows           their values, and
    accuracies     their accuracies with shared weights, in the same order
    seconds        of judging them; `supernet` is what training it cost, perhaps in another run
    failures       networks that could not be judged
    """

    rows: tuple[Mapping[str, Any], ...]
    accuracies: tuple[float, ...]
    seconds: float
    supernet: Spent
    failures: int = 0
    name: str = "supernet"


def supernet_prior(space: Any, feasible: FeasibleSet, data: Mapping[str, Any], recipe: Mapping[str, Any] | None, records: RecordFile,
                   count: int, *, settings: Mapping[str, Any] | None = None, executor: Executor | Mapping[str, Any] | str | None = None,
                   workers: int | None = None, folder: Path | None = None, seed: int = 0, screen: Screen | None = None) -> Prior:
    """Train the supernet of the space if nobody did, and judge `count` different networks of the window by it.

    settings   of evaluator=supernet
    records    of the run: what is on record there is not judged again
    seed       of the draws

    Fewer networks than `count` where the window holds no more. RunError when none could be judged.
    """
    if count < 1:
        raise ConfigError(f"prior networks={count}: at least one")
    evaluator: Any = prior_evaluator(space, data, recipe, settings, screen)
    spent = evaluator.prepare(screen)
    networks = draw_networks(space, feasible, count, seed)
    with (screen or Screen()).progress(len(networks), "prior") as bar:
        found = evaluate_networks([network for _, network in networks], evaluator, AccuracyReward(), records=records, origin=ORIGIN,
                                  values=[values for values, _ in networks], executor=executor,
                                  workers=parts.worker_count(workers, evaluator), folder=folder,
                                  on_record=lambda record, done, total: bar.set(done))
    good = [record for record in found if record.ok]
    if not good:
        raise RunError(f"prior: no network could be judged: {found[-1].failure}")
    return Prior(tuple(dict(record.values) for record in good), tuple(float(record.accuracy or 0.0) for record in good),
                 sum(record.seconds for record in found), spent, len(found) - len(good))


def prior_evaluator(space: Any, data: Mapping[str, Any], recipe: Mapping[str, Any] | None, settings: Mapping[str, Any] | None = None,
                    screen: Screen | None = None) -> SupernetEvaluator:
    """What judges the networks of a prior."""
    evaluator: SupernetEvaluator = parts.load_evaluator("supernet", settings, data, recipe, screen)
    return evaluator.over(space)


def agreement(evaluator: Any, networks: Sequence[Architecture], accuracies: Sequence[float | None], records: RecordFile,
              **how: Any) -> RankCorrelation:
    """Kendall's τ between what the supernet says of these networks and what they reach, each trained alone.

    evaluator    the prior's, from `prior_evaluator`
    accuracies   in the order of `networks`; None for one whose training failed
    how          executor, workers, folder: as for `evaluate_networks`, which judges those not on record
    """
    found = evaluate_networks(networks, evaluator, AccuracyReward(), records=records, origin=ORIGIN, **how)
    return rank_agreement([record.accuracy for record in found], accuracies)


def draw_networks(space: Any, feasible: FeasibleSet, count: int, seed: int) -> list[tuple[dict[str, Any], Architecture]]:
    """Different networks, uniform over the window, with their values; the same ones for the same seed."""
    generator, found, repeats = np.random.default_rng([seed, STREAM]), dict[Any, tuple[dict[str, Any], Architecture]](), 0
    while len(found) < count and repeats < _PATIENCE:
        values = feasible.draw(generator)
        network = space.decode(values)
        new = blocks(network) not in found
        repeats = 0 if new else repeats + 1
        if new:
            found[blocks(network)] = (values, network)
    return list(found.values())
