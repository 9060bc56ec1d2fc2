"""The verdict of a search: its best networks trained again, beside the stock baseline at equal cost and a random network.

What a search promises is the highest of many noisy numbers, often at a shorter schedule. So the
finalists are trained again at the full schedule with seeds that the search never used; the best of
them is the winner. The stock baseline is scaled to the winner's cost, a random network of the window
of nearly that cost is drawn, and both are trained with the same seeds. Only then are the test images
read, once for each training; every choice was made on validation images.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scalesearch.architecture import Architecture
from scalesearch.bench import Measure, OnRecord
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, EvaluatorError, RunError, SpaceError
from scalesearch.objective import Objective
from scalesearch.records import Record, RecordFile, write_atomic
from scalesearch.scaling import RULES, ScalingRule
from scalesearch.search import evaluate_networks
from scalesearch.spaces import Space
from scalesearch.spaces.feasible import FeasibleSet
from scalesearch.studies.equal_cost import CostOf, Scaled, scale_by_measuring, scale_to_cost
from scalesearch.studies.verdict import BASELINE, FINALIST, RANDOM, Verdict, judge

# Origins of the records.
ORIGINS = (FINALIST, BASELINE, RANDOM)
# Fresh seeds begin at the next multiple of this.
SEEDS_APART = 1000
# Of so many draws from the window the one nearest to the winner's cost is the random network.
STREAM = 2  # of random draws, beside the sampler's own from the same seed
DRAWS = 100
# Accuracies on test images, each read once.
TESTS_FILE = "test_accuracies.json"


def run_finalists(winners: Sequence[Architecture], evaluator: Any, baseline: Architecture, space: Space, feasible: FeasibleSet,
                  objective: Objective, *, records: RecordFile, seeds: Sequence[int] = (1000, 1001, 1002),
                  promised: Mapping[str, float] | None = None, same_schedule: bool | None = None,
                  rule: ScalingRule = RULES["compound"], cost: CostOf | None = None, measured: CostOf | None = None,
                  measure: Measure | None = None, executor: Any = None,
                  workers: int = 1, folder: Path | None = None, on_record: OnRecord | None = None, confidence: float = 0.95,
                  seed: int = 0) -> Verdict:
    """Train the winners of a search again and judge them; a second call evaluates and reads nothing again.

    winners        best first by the search; `promised` what it saw of each, by id (None: from `records`)
    evaluator      of the full schedule, in one rung; one with `test_accuracy` has its test images read
    seeds          fresh ones (`fresh_seeds`): every network is trained at each
    same_schedule  whether the promises come from this schedule; None: looked up in `records`
    cost           by which the baseline is scaled and the random network chosen; None: multiply-adds
    measured       the same by a measurement, where `cost` only predicts it: for the baseline, which is of other blocks
    measure        a network's measured costs, where the objective needs them
    seed           of the random network

    RunError when no finalist could be trained; ConfigError for a seed that the search has used.
    """
    winners = list({network.id: network for network in winners}.values())
    earlier = _before(records, {network.id for network in winners})
    _check_fresh(winners, seeds, earlier, evaluator)
    price: CostOf = cost or (lambda network: cost_of(network).macs)

    def train(networks: Sequence[Architecture], origin: str) -> dict[str, list[Record]]:
        done = evaluate_networks(networks, evaluator, objective, records=records, origin=origin, seeds=seeds, executor=executor,
                                 workers=workers, folder=folder, on_record=on_record, measure=measure)
        return {network.id: done[i * len(seeds): (i + 1) * len(seeds)] for i, network in enumerate(networks)}

    trained = train(winners, FINALIST)
    winner = choose([(network, trained[network.id]) for network in winners])
    accepts = functools.partial(_accepted, evaluator)
    scaled = (scale_to_cost(baseline, price(winner), rule, cost=price, accepts=accepts) if measured is None
              else scale_by_measuring(baseline, measured(winner), winner, measured, rule, accepts=accepts))
    drawn = random_network(space, feasible, price, price(winner), {*trained, scaled.architecture.id}, seed)
    beside = [scaled.architecture.replace(name=_scaled_name(baseline, scaled, (measured or price)(baseline))), *([drawn] if drawn else [])]
    trained |= train(beside[:1], BASELINE) | train(beside[1:], RANDOM)
    tests = read_tests(trained, evaluator, folder)
    read = None if tests is None else {id: [tests[training_key(r)]["accuracy"] if r.ok else None for r in rs] for id, rs in trained.items()}
    images = next((test["images"] for test in (tests or {}).values()), None)
    promised = {id: sum(r.accuracy or 0.0 for r in rs) / len(rs) for id, rs in earlier.items()} if promised is None else promised
    if same_schedule is None:
        same_schedule = {r.fingerprint for rs in earlier.values() for r in rs} <= {evaluator.fingerprint}
    roles = [*((FINALIST, n) for n in winners), (BASELINE, beside[0]), *((RANDOM, n) for n in beside[1:])]
    return judge(roles, trained, read, images, winner, scaled, promised, same_schedule, measured or price, tuple(seeds), confidence,
                 1 / evaluator.folds if getattr(evaluator, "folds", 1) > 1 else None)


def fresh_seeds(count: int, taken: Iterable[int]) -> tuple[int, ...]:
    """So many seeds beyond all that are taken, at the next multiple of 1000.

    >>> fresh_seeds(3, range(2)), fresh_seeds(2, [1000])
    ((1000, 1001, 1002), (2000, 2001))
    """
    start = SEEDS_APART * (1 + max(taken, default=0) // SEEDS_APART)
    return tuple(range(start, start + count))


def choose(trained: Sequence[tuple[Architecture, Sequence[Record]]]) -> Architecture:
    """The highest mean reward among the networks with the fewest failures: on validation images, by fresh seeds."""
    good = [(network, [r.reward for r in records if r.reward is not None]) for network, records in trained]
    most = max((len(rewards) for _, rewards in good), default=0)
    if not most:
        causes = [r.failure for _, records in trained for r in records if r.failure]
        raise RunError(f"no finalist could be trained at the full schedule: {causes[0] if causes else 'there is none'}")
    return max(((network, sum(rewards) / most) for network, rewards in good if len(rewards) == most), key=lambda row: row[1])[0]


def random_network(space: Space, feasible: FeasibleSet, price: CostOf, cost: float, taken: Iterable[str], seed: int) -> Architecture | None:
    """Of uniform draws from the window the one nearest to `cost` that is not taken: random in all but its cost. None: there is none."""
    import numpy as np

    found: dict[str, Architecture] = {}
    for values in feasible.random_draws(np.random.default_rng([seed, STREAM]), DRAWS):
        try:
            network = space.decode(values)
        except SpaceError:
            continue
        found.setdefault(network.id, network)
    fresh = [network for id, network in found.items() if id not in set(taken)]
    nearest = min(fresh, key=lambda network: abs(price(network) - cost), default=None)
    return None if nearest is None else nearest.replace(name="random network")


def read_tests(trained: Mapping[str, Sequence[Record]], evaluator: Any, folder: Path | None) -> dict[str, dict[str, Any]] | None:
    """The accuracy on test images of every training that succeeded, by its folder's name; None for an evaluator without.

    What was read is kept beside the records, and never read again.
    """
    if folder is None or not hasattr(evaluator, "test_accuracy") or not getattr(evaluator, "has_test_images", True):
        return None
    path = folder / TESTS_FILE
    known: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for record in (r for rs in trained.values() for r in rs if r.ok and training_key(r) not in known):
        place = folder / "candidates" / training_key(record)
        test = evaluator.test_accuracy(record.network, seed=record.seed, folder=place)
        known[training_key(record)] = {"accuracy": test.accuracy, "images": test.details.get("test_images")}
        write_atomic(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return known


def training_key(record: Record) -> str:
    """The folder of a training under `candidates`."""
    return f"{record.id}/{record.fingerprint}-s{record.seed}"


# ------------------------------------------------------------------ helpers


def _before(records: RecordFile, ids: set[str]) -> dict[str, list[Record]]:
    """What the search recorded of these networks: of each seed the last rung."""
    last: dict[str, dict[int, Record]] = {}
    for record in records:
        if record.id in ids and record.ok and record.origin not in ORIGINS:
            mine = last.setdefault(record.id, {})
            if record.seed not in mine or record.rung >= mine[record.seed].rung:
                mine[record.seed] = record
    return {id: list(mine.values()) for id, mine in last.items()}


def _check_fresh(winners: Sequence[Architecture], seeds: Sequence[int], earlier: Mapping[str, Sequence[Record]], evaluator: Any) -> None:
    if not winners or not seeds:
        raise ConfigError(f"{len(winners)} finalists at {len(seeds)} seeds: both are at least 1")
    used = {r.seed for records in earlier.values() for r in records if r.fingerprint == evaluator.fingerprint}
    if used & set(seeds):
        raise ConfigError(f"finalists' seeds {sorted(used & set(seeds))} are the search's own; fresh ones begin at "
                          f"{fresh_seeds(1, used)[0]}")


def _accepted(evaluator: Any, network: Architecture) -> bool:
    try:
        evaluator.check(network)
    except EvaluatorError:
        return False
    return True


def _scaled_name(base: Architecture, scaled: Scaled, cost: float) -> str:
    return base.name if scaled.architecture.id == base.id else f"{base.name}-{scaled.cost / cost:.2f}x"

