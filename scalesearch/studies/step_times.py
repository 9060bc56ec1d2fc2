"""What a candidate's training takes on this device: a few steps of the cheapest, the median and the dearest, timed.

The steps are those of the training loop itself, at the recipe's batch, so nothing is left out:
augmentation, averaging, the network. A training is then its steps and its validations.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from scalesearch.architecture import Architecture
from scalesearch.cost import cost_of
from scalesearch.spaces import Space
from scalesearch.spaces.feasible import FeasibleSet
from scalesearch.studies.planner import Bill, Budget, StepTime, plan_bill, typical

# Steps of an epoch that warms up, and of the one that is timed.
STEPS = 6
# Validation images that are timed; a CPU takes batches of 128, a GPU of 512.
MOST_VALIDATION = 1024
# Draws among which the cheapest, median and dearest are found.
DRAWS = 100
# What a recipe lets grow over its stages; timed is its last value.
GROWING = ("size", "magnitude", "mixup", "cutmix", "dropout")


def make_bill(budget: Budget, space: Space, feasible: FeasibleSet, evaluator: Any, *, final: Any = None, workers: int = 1,
              seeds: int = 1, reduction: float = 3.0, finalists: int = 5, final_seeds: int = 3, audit: tuple[int, Any] | None = None,
              prior_seconds: float | None = None, trials: int | None = None, seed: int = 0, steps: int = STEPS) -> Bill:
    """Time three candidates of the window, then `plan_bill`.

    evaluator      what the search trains with, in its rungs
    final          of the finalists' schedule; None: the same
    audit          (networks, longer evaluator, or this one where its rungs are compared), where an audit comes first
    prior_seconds  of one worker, where a prior is trained first
    trials         where the number is settled; the budget's own otherwise
    """
    chosen = window_networks(space, feasible, seed)
    times = tuple(time_network(evaluator, final or evaluator, network, role, steps) for role, network in chosen)
    before: dict[str, tuple[int, float]] = {}
    if audit is not None:
        networks, long = audit
        middle = len(times) // 2
        longer = 0.0 if long is evaluator else training_seconds(long, chosen[middle][1], times[middle], len(long.rungs) - 1)
        before["audit"] = (networks, sum(times[middle].rungs) + longer)
    if prior_seconds is not None:
        before["prior"] = (1, prior_seconds)
    return plan_bill(typical(times), budget=budget.clock(workers), trials=budget.trials if trials is None else trials, workers=workers,
                     seeds=seeds, shares=evaluator.rungs, reduction=reduction, finalists=finalists, final_seeds=final_seeds, before=before,
                     times=times, most=feasible.upper)


def window_networks(space: Space, feasible: FeasibleSet, seed: int = 0) -> list[tuple[str, Architecture]]:
    """The cheapest, median and dearest of some draws by role; fewer where they are one network."""
    draws = [space.decode(values) for values in feasible.random_draws(np.random.default_rng(seed), DRAWS)]
    draws.sort(key=lambda network: (cost_of(network).macs, network.id))
    chosen = list(dict.fromkeys((draws[0], draws[len(draws) // 2], draws[-1])))
    roles = {1: ("median",), 2: ("cheapest", "dearest"), 3: ("cheapest", "median", "dearest")}[len(chosen)]
    return list(zip(roles, chosen, strict=True))


def time_network(evaluator: Any, final: Any, network: Architecture, role: str = "", steps: int = STEPS) -> StepTime:
    """A network's step and validation, and from them what its rungs and its final training take."""
    step, validation = time_steps(evaluator, network, steps)
    raw = StepTime(role, network.id, cost_of(network).macs, step, validation, (), 0.0)
    ends = [training_seconds(evaluator, network, raw, rung) for rung in range(len(evaluator.rungs))]
    added = [end - (ends[k - 1] if k and evaluator.ladder.resumes else 0.0) for k, end in enumerate(ends)]
    return dataclasses.replace(raw, rungs=tuple(added), final=training_seconds(final, network, raw, len(final.rungs) - 1))


def training_seconds(evaluator: Any, network: Architecture, timed: StepTime, rung: int) -> float:
    """Of a training to the end of a rung: steps by their multiply-adds, and a validation after each epoch."""
    per_mac = timed.step_seconds / (3.0 * timed.macs * min(evaluator.recipe.batch, evaluator.training_images()))
    epochs: int = evaluator.ladder.epochs(evaluator.recipe.epochs)[rung]
    return float(per_mac * evaluator.expected_training_macs(network, rung)) + epochs * timed.validation_seconds


def time_steps(evaluator: Any, network: Architecture, steps: int = STEPS) -> tuple[float, float]:
    """Seconds of one training step at the recipe's batch, and of one validation; the first epoch of a few steps warms up."""
    import torch

    from scalesearch.networks.build import build_model
    from scalesearch.training.augment import Images
    from scalesearch.training.devices import memory_budget, torch_device, wants_bf16
    from scalesearch.training.evaluation import evaluate, statistics_on
    from scalesearch.training.loop import train
    from scalesearch.training.recipe import ends

    settled = {name: ends(getattr(evaluator.recipe, name))[1] for name in GROWING}
    recipe = dataclasses.replace(evaluator.recipe_for(network), **settled, epochs=2, stages=1, warmup=0.0, learning_rate=1e-4,
                                 compile="never")
    split = evaluator.dataset().split(0, evaluator.folds)
    shown = min(len(split.validation), MOST_VALIDATION)
    part = dataclasses.replace(split, train=split.train[:steps * recipe.batch], validation=split.validation[:shown])
    taken = max(len(part.train) // recipe.batch, 1)
    device = torch_device(evaluator.device)
    with _threads(evaluator.threads):
        model = build_model(network, padding=recipe.padding, bn_eps=recipe.bn_eps, bn_momentum=recipe.bn_momentum, seed=0)
        history = list(train(model, part, recipe, resolution=network.resolution, macs=lambda resolution: 0.0, seed=0, device=device))
        images = Images(part.data, part.validation, network.resolution, device, memory_budget(device))
        mean, deviation = statistics_on(part.statistics, device)
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            evaluate(model, images, mean, deviation, wants_bf16(recipe, device))
            seconds.append(time.perf_counter() - started)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    # The timed epoch holds a validation too.
    epoch = history[1].seconds - history[0].seconds
    return max(epoch - seconds[1], 0.1 * epoch) / taken, seconds[1] * len(split.validation) / shown


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch's threads inside as in a training."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
