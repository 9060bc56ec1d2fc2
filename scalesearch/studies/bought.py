"""What a search bought: its best network so far against a random search of the same window, the decisions that mattered, the front.

A random search needs no search to be known: what the best of n uniform draws is worth follows from the
distribution of one draw. Where an evaluator takes microseconds, draws are evaluated. Where it trains,
the predictor that the search has learned says what draws would reach and what the search's networks
reach, its own doubt included in both and the luck of single trainings in neither: said as predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scalesearch.architecture import Architecture
from scalesearch.records import Record
from scalesearch.spaces import Space
from scalesearch.spaces.amounts import exact_amounts
from scalesearch.spaces.feasible import FeasibleSet

Floats = NDArray[np.float64]
AmountsOf = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]
Kind = Literal["measured", "predicted", "startup"]

# Random draws behind a curve: at least, and for each training of the search, and at most.
FEWEST, EACH, MOST = 2000, 10, 5000
# The best of more draws than this share of those evaluated is not told: their tail would be a handful.
STREAM = 4  # of random draws, beside the sampler's own from the same seed
TOLD = 0.25
# Points of a curve; draws by which the cost of a random training is averaged.
POINTS, PRICED = 80, 50
# Times that the search's own networks are drawn from what the predictor thinks possible.
IMAGINED = 200


@dataclass(frozen=True)
class Curves:
    """Best reward so far of the search, and of a random search of the same window, whose mean and middle 80 % are given.

    kind        measured: draws were evaluated; predicted: by the search's predictor, for both; startup: from the
                uniform draws that the search began with, by their observed rewards
    draws       behind the random search
    trainings   n, and the best of n draws: mean and quantiles 0.1 and 0.9
    networks    of the search, and its best reward after each; `cost` after each evaluation in whole random
                trainings, and its best then (empty where nothing is trained)
    needed      whole random trainings until their expected best is the search's; None: more than `most`
    doubt       share of the spread of predicted draws that is the predictor's doubt and not a difference it knows of
    """

    kind: Kind
    draws: int
    trainings: tuple[int, ...]
    random: tuple[float, ...]
    random_low: tuple[float, ...]
    random_high: tuple[float, ...]
    networks: tuple[int, ...]
    search: tuple[float, ...]
    cost: tuple[float, ...]
    search_at_cost: tuple[float, ...]
    gain_at_number: float
    gain_at_cost: float | None
    needed: int | None
    most: int
    doubt: float | None = None


@dataclass(frozen=True)
class Importance:
    """A decision. predictor: share of the variance of predicted accuracy; ped_anova: share of what sets the best tenth apart."""

    name: str
    predictor: float | None
    ped_anova: float | None


@dataclass(frozen=True)
class FrontPoint:
    """A network that no other beats in both cost and accuracy (mean over its seeds, of the last rung)."""

    id: str
    cost: float
    accuracy: float
    macs: int
    params: int


@dataclass(frozen=True)
class Bought:
    """`cost` names what the front trades against accuracy; `importances` come with the largest first."""

    curves: Curves | None
    importances: tuple[Importance, ...]
    front: tuple[FrontPoint, ...]
    cost: str


def what_it_bought(records: Sequence[Record], space: Space, feasible: FeasibleSet, evaluator: Any, objective: Any, *, sampler: Any = None,
                   amounts: AmountsOf | None = None, startup: int = 0, seed: int = 0) -> Bought:
    """From the records of a search (`SearchResult.records`) and its sampler, told of all of them.

    amounts   costs of sets of values, arrays of equal length; None: exact multiply-adds and parameters
    startup   how many of the first networks were uniform draws, for samplers without a predictor
    seed      of the random draws
    """
    amounts = amounts or exact_amounts(space)
    cost = str(getattr(objective, "cost", "macs"))
    return Bought(curves_of(records, space, feasible, evaluator, objective, sampler, amounts, startup, seed),
                  importances_of(records, space, sampler), front_of(records, cost), cost)


# ------------------------------------------------------------------ against a random search


def curves_of(records: Sequence[Record], space: Space, feasible: FeasibleSet, evaluator: Any, objective: Any, sampler: Any,
              amounts: AmountsOf, startup: int, seed: int) -> Curves | None:
    """None where nothing is known of random draws, or nothing succeeded."""
    firsts = list({record.id: record for record in reversed(records) if record.ok}.values())[::-1]
    if not firsts:
        return None
    predict = getattr(sampler, "predict", None)
    if getattr(evaluator, "inline", False):
        rows = _draws(feasible, len(firsts), seed)
        networks = [space.decode(values) for values in rows]
        drawn = _rewards(objective, _accuracies(evaluator, networks), amounts(rows))
        return curves("measured", drawn, records, _mean_rewards(records), None)
    told = [record for record in firsts if record.values]
    if predict is not None and told:
        rows = _draws(feasible, len(firsts), seed)
        rng, own = np.random.default_rng(seed), [r.values for r in told]
        mean, deviation = (np.asarray(part, dtype=float) for part in predict(rows))
        drawn = _rewards(objective, _imagined(mean, deviation, rng), amounts(rows))
        own_mean, own_deviation = predict(own)
        known = [_rewards(objective, accuracies, amounts(own)) for accuracies in _imagined(own_mean, own_deviation, rng, IMAGINED)]
        found = curves("predicted", drawn, records, {r.id: values for r, values in zip(told, np.transpose(known), strict=True)},
                       _price(evaluator, [space.decode(values) for values in rows[:PRICED]]))
        unknown = float(np.mean(deviation**2))
        return replace(found, doubt=unknown / max(unknown + float(mean.var()), 1e-12))
    worth = _mean_rewards(records)
    drawn_first = [record for record in firsts[:startup] if record.id in worth]
    if len(drawn_first) < 2:
        return None
    return curves("startup", np.array([worth[r.id] for r in drawn_first]), records, worth,
                  _price(evaluator, [r.network for r in drawn_first]))


def curves(kind: Kind, drawn: Floats, records: Sequence[Record], worth: Mapping[str, Any], price: float | None) -> Curves:
    """The curves from the rewards of random draws (n,) and what each network of the search is worth: a number, or as many
    possible ones for each (k,), over which the best so far is averaged.

    `price` is the training cost of a whole random training in multiply-adds; None where nothing is trained.
    """
    good = [record for record in records if record.id in worth]
    new = list(dict.fromkeys(record.id for record in good))
    best = _best_so_far([worth[id] for id in new])
    spent = np.cumsum([record.training_macs for record in good]) / price if price else np.empty(0)
    at_cost = _best_so_far([worth[record.id] for record in good]) if price else np.empty(0)
    most = max(len(drawn) if kind == "startup" else int(TOLD * len(drawn)), 1)
    counts = tuple(n for n in _spaced(max(len(new), min(most, 4 * len(new)))) if n <= most)
    total = max(1, round(float(spent[-1]))) if len(spent) else None
    low, high = (tuple(best_quantile(drawn, n, share) for n in counts) for share in (0.1, 0.9))
    networks, search = _thinned(np.arange(1, len(new) + 1), best)
    cost, search_at_cost = _thinned(spent, at_cost)
    return Curves(kind, draws=len(drawn), trainings=counts, random=tuple(expected_best(drawn, n) for n in counts), random_low=low,
                  random_high=high, networks=networks, search=search, cost=cost, search_at_cost=search_at_cost,
                  gain_at_number=float(best[-1]) - expected_best(drawn, min(len(new), most)),
                  gain_at_cost=None if total is None else float(best[-1]) - expected_best(drawn, min(total, most)),
                  needed=_needed(drawn, float(best[-1]), most), most=most)


def expected_best(values: Floats, count: int) -> float:
    """Mean of the highest of `count` of these values, over all ways to take them: unbiased where they are independent draws.

    >>> [round(expected_best(np.array([0.0, 1.0, 2.0]), count), 6) for count in (1, 2, 3)]
    [1.0, 1.666667, 2.0]
    """
    return float(np.sort(values) @ np.diff(_all_among(len(values), count)))


def best_quantile(values: Floats, count: int, share: float) -> float:
    """The quantile of the highest of `count` of these values."""
    place = int(np.searchsorted(_all_among(len(values), count), share - 1e-9)) - 1
    return float(np.sort(values)[min(max(place, 0), len(values) - 1)])


def _all_among(size: int, count: int) -> Floats:
    """For i = 0 … size: the chance that `count` taken of `size` are all among the lowest i."""
    from scipy.special import gammaln

    lowest = np.arange(size + 1)
    ways = gammaln(lowest + 1.0) - gammaln(np.maximum(lowest - count, 0) + 1.0)
    return np.where(lowest < count, 0.0, np.exp(ways - ways[-1]))


def _needed(values: Floats, reward: float, most: int) -> int | None:
    """The fewest draws whose expected best is at least this reward, by bisection; None for more than `most`."""
    if expected_best(values, most) < reward:
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if expected_best(values, middle) >= reward else (middle, high)
    return high


def _spaced(most: int) -> list[int]:
    """Whole numbers from 1, evenly in their logarithm."""
    return sorted({round(n) for n in np.geomspace(1, max(most, 1), POINTS)})


def _thinned(x: NDArray[Any], y: NDArray[Any]) -> tuple[tuple[Any, ...], tuple[float, ...]]:
    """At most POINTS of a step curve: where it rises, else evenly, and its end."""
    if len(x) > POINTS:
        rises = np.flatnonzero(np.diff(y, prepend=-np.inf) > 0)
        even = np.linspace(0, len(x) - 1, POINTS // 2).astype(int)
        keep = np.unique(np.concatenate([rises[-POINTS // 2:], even]))
        x, y = x[keep], y[keep]
    return tuple(x.tolist()), tuple(y.tolist())


def _best_so_far(worth: Sequence[Any]) -> Floats:
    return np.asarray(np.maximum.accumulate(np.asarray(worth, dtype=float).reshape(len(worth), -1)).mean(axis=1))


def _imagined(mean: Any, deviation: Any, rng: np.random.Generator, times: int | None = None) -> Floats:
    """Accuracies as a predictor's mean and deviation allow, (n,), or (times, n): the best of several is above their means, for a
    search's networks as for random ones."""
    shape = (len(mean),) if times is None else (times, len(mean))
    return np.asarray(np.clip(mean + deviation * rng.normal(size=shape), 0.0, 1.0), dtype=float)


def _mean_rewards(records: Sequence[Record]) -> dict[str, float]:
    """By network id, over the seeds, of the networks at the last rung that any reached."""
    last = max((record.rung for record in records if record.ok), default=0)
    rewards: dict[str, list[float]] = {}
    for record in records:
        if record.ok and record.rung == last and record.reward is not None:
            rewards.setdefault(record.id, []).append(record.reward)
    return {id: sum(values) / len(values) for id, values in rewards.items()}


def _draws(feasible: FeasibleSet, trainings: int, seed: int) -> list[dict[str, Any]]:
    count = min(max(FEWEST, EACH * trainings), MOST)
    return feasible.random_draws(np.random.default_rng([seed, STREAM]), count)


def _accuracies(evaluator: Any, networks: Sequence[Architecture]) -> Floats:
    """Of an evaluator of microseconds; all at once where it can."""
    if hasattr(evaluator, "predict"):
        return np.asarray(evaluator.predict(networks)[0], dtype=float)
    return np.array([evaluator.evaluate(network, seed=0).accuracy for network in networks], dtype=float)


def _rewards(objective: Any, accuracies: Floats, amounts: Mapping[str, Any]) -> Floats:
    return np.asarray(objective(accuracies, amounts), dtype=float)


def _price(evaluator: Any, networks: Sequence[Architecture]) -> float | None:
    """Mean training multiply-adds of a whole training of these networks, where the evaluator knows."""
    expected = getattr(evaluator, "expected_training_macs", None)
    return None if expected is None or not networks else float(np.mean([expected(network) for network in networks]))


# ------------------------------------------------------------------ decisions, front


def importances_of(records: Sequence[Record], space: Space, sampler: Any) -> tuple[Importance, ...]:
    """By the sampler's predictor where it has one, and by PED-ANOVA on what every network scored at the first rung."""
    from scalesearch.samplers.optuna_bridge import decision_importances

    told = getattr(sampler, "importances", None)
    by_predictor: Mapping[str, float] = told() if told is not None else {}
    by_anova = decision_importances([record for record in records if record.rung == 0], space)
    names = [p.name for p in space.parameters if p.name in by_predictor or p.name in by_anova]
    found = [Importance(name, by_predictor.get(name), by_anova.get(name)) for name in names]
    return tuple(sorted(found, key=lambda row: (-(row.predictor or 0.0), -(row.ped_anova or 0.0))))


def front_of(records: Sequence[Record], cost: str = "macs") -> tuple[FrontPoint, ...]:
    """The cheapest first, of the networks that reached the highest rung that any reached."""
    good = [record for record in records if record.ok]
    last = max((record.rung for record in good), default=0)
    groups: dict[str, list[Record]] = {}
    for record in good:
        if record.rung == last:
            groups.setdefault(record.id, []).append(record)
    points = [FrontPoint(id, _cost(rs[0], cost), sum(r.accuracy or 0.0 for r in rs) / len(rs), rs[0].macs, rs[0].params)
              for id, rs in groups.items()]
    front: list[FrontPoint] = []
    for point in sorted((point for point in points if math.isfinite(point.cost)), key=lambda point: (point.cost, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return tuple(front)


def _cost(record: Record, name: str) -> float:
    exact = {"macs": record.macs, "params": record.params}
    return float(exact[name] if name in exact else record.measured.get(name, math.nan))
