"""One contract for every row of SAMPLERS, and what is particular to some."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.objective import SoftReward, Window
from scalesearch.samplers import SAMPLERS, Outcome, Sampler
from scalesearch.spaces import load_space
from scalesearch.spaces.amounts import exact_amounts
from scalesearch.spaces.feasible import feasible_set

sys.path.insert(0, str(Path(__file__).parents[1]))
from toys import ToySpace, truth

SPACE = ToySpace()
WINDOW = Window(400_000, 1_200_000)
NETWORKS = 73
# Small settings, so that every sampler is past its random start after a few proposals.
SMALL: dict[str, dict[str, Any]] = {"tpe": {"startup": 5}, "gp": {"startup": 5}, "nsga2": {"population": 8},
                                    "evolution": {"population": 8, "tournament": 4}, "predictor": {"startup": 3},
                                    "local": {"start": 4}}
# Proposals of a test: a Gaussian process takes a good part of a second for each.
COUNT = {"gp": 8}
every_sampler = pytest.mark.parametrize("name", SAMPLERS.names())


def build(name: str, seed: int = 0, window: Window | None = WINDOW) -> Sampler:
    feasible = None if window is None else feasible_set(SPACE, window)
    sampler: Sampler = SAMPLERS.build({"name": name, **SMALL.get(name, {})}, space=SPACE, feasible=feasible, seed=seed,
                                      objective=SoftReward(1e6), amounts=exact_amounts(SPACE))
    return sampler


def outcome(values: dict[str, Any]) -> Outcome:
    network = SPACE.decode(values)
    macs = cost_of(network).macs
    return Outcome(truth(network), SoftReward(1e6)(truth(network), {"macs": macs}), macs)


def drive(sampler: Sampler, count: int, answer: Callable[[dict[str, Any]], Outcome | None] = outcome) -> list[dict[str, Any]]:
    asked = []
    for _ in range(count):
        values = sampler.ask()
        assert values is not None
        asked.append(values)
        sampler.tell(values, answer(values))
    return asked


def test_window_holds_some_and_not_all() -> None:
    feasible = feasible_set(SPACE, WINDOW)
    assert feasible.count == NETWORKS


@every_sampler
@pytest.mark.parametrize("window", [WINDOW, None])
def test_values_are_legal(name: str, window: Window | None) -> None:
    for values in drive(build(name, window=window), COUNT.get(name, 14)):
        assert set(values) == {p.name for p in SPACE.parameters}
        assert SPACE.encode(SPACE.decode(values))


@every_sampler
def test_equal_seeds_and_answers_give_equal_proposals(name: str) -> None:
    count = COUNT.get(name, 14)
    first, again = drive(build(name, 3), count), drive(build(name, 3), count)
    assert first == again
    if name != "enumerate":
        assert drive(build(name, 4), 5) != first[:5]


@every_sampler
def test_refusals_and_failures_are_borne(name: str) -> None:
    answers = iter([None, outcome] * 30)

    def every_other(values: dict[str, Any]) -> Outcome | None:
        answer = next(answers)
        return None if answer is None else answer(values)

    assert len(drive(build(name), COUNT.get(name, 20), every_other)) == COUNT.get(name, 20)
    assert len(drive(build(name), 8, lambda values: None)) == 8


@every_sampler
def test_networks_that_it_did_not_propose_are_welcome(name: str) -> None:
    sampler = build(name)
    rng = np.random.default_rng(0)
    for values in feasible_set(SPACE, WINDOW).random_draws(rng, 12):
        sampler.tell(values, outcome(values))
        sampler.tell(values, None)
    assert drive(sampler, 3)


@every_sampler
def test_several_may_be_asked_for_before_the_first_is_told(name: str) -> None:
    sampler, proposed = build(name), 0
    for _ in range(COUNT.get(name, 18) // 3):
        batch = [values for values in (sampler.ask() for _ in range(3)) if values]
        proposed += len(batch)
        for values in reversed(batch):
            sampler.tell(values, outcome(values))
    assert proposed >= 3


@pytest.mark.parametrize("name", ["cmaes", "evolution", "local", "nsga2", "tpe"])
def test_learns_in_a_large_space_and_a_narrow_window(name: str) -> None:
    """Later proposals are on average better than random ones by more than the spread of those, at equal cost."""
    space = load_space("mbconv")
    feasible = feasible_set(space, Window(180_000_000, 200_000_000))

    def good(values: dict[str, Any]) -> Outcome:
        share = sum(value in (5, 0.25) for value in values.values()) / 14  # large kernels and squeeze-excite
        return Outcome(share, share, cost_of(space.decode(values)).macs)

    random = [good(values).reward for values in feasible.random_draws(np.random.default_rng(0), 200)]
    sampler = SAMPLERS.build({"name": name, **SMALL.get(name, {})}, space=space, feasible=feasible, seed=0)
    asked = [good(values).reward for values in drive(sampler, 150, good)]
    assert np.mean(asked[-30:]) > np.mean(random) + np.std(random)


def test_the_gaussian_process_finds_the_best_of_180() -> None:
    """In 18 proposals; random ones would in one case of ten."""
    space = ToySpace()

    def accuracy(values: dict[str, Any]) -> Outcome:
        return Outcome(truth(space.decode(values)), truth(space.decode(values)), 1)

    assert max(accuracy(values).reward for values in drive(build("gp", window=None), 18, accuracy)) == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["cmaes", "evolution", "gp", "local", "nsga2", "predictor", "random", "tpe"])
def test_proposals_stay_in_the_window(name: str) -> None:
    """Proposals outside cost no trial but time; few may be."""
    asked = drive(build(name), COUNT.get(name, 25))
    inside = sum(cost_of(SPACE.decode(values)).macs in WINDOW for values in asked)
    assert inside >= len(asked) - 3


def test_enumerate_gives_everything_once_in_grid_order_and_ends() -> None:
    sampler = build("enumerate")
    asked = list(iter(sampler.ask, None))
    assert len(asked) == 180 and len({tuple(values.values()) for values in asked}) == 180
    assert asked[0] == {"layers": 1, "channels": 8, "kernel": 3, "expansion": 1}
    assert asked[1] == {"layers": 1, "channels": 8, "kernel": 3, "expansion": 4}
    assert sampler.ask() is None


def test_random_is_uniform_over_the_networks_of_the_window() -> None:
    sampler = build("random", seed=1)
    ids = [SPACE.decode(values).id for values in (sampler.ask() for _ in range(NETWORKS * 60)) if values]
    counts = np.unique(ids, return_counts=True)[1]
    assert len(counts) == NETWORKS
    statistic = float(((counts - 60) ** 2 / 60).sum())
    assert statistic < NETWORKS + 4 * (2 * NETWORKS) ** 0.5, "chi-square, four standard deviations"


def test_the_window_of_tpe_is_where_its_candidates_are_chosen() -> None:
    """The hook into Optuna's acquisition is there: without it most proposals of a narrow window are refused."""
    space = load_space("mbconv")
    feasible = feasible_set(space, Window(180_000_000, 200_000_000))
    sampler = SAMPLERS.build("tpe", space=space, feasible=feasible, seed=0)
    inside = []
    for _ in range(40):
        values = sampler.ask()
        cost = cost_of(space.decode(values)).macs
        inside.append(cost in feasible.window)
        sampler.tell(values, Outcome(0.5, -cost / 1e9, cost) if inside[-1] else None)
    assert all(inside[:10]), "drawn from the window"
    assert sum(inside[10:]) >= 24


@pytest.mark.parametrize(("name", "count"), [("cmaes", 12), ("gp", 6)])
def test_proposals_are_moved_into_a_narrow_window_as_a_whole(name: str, count: int) -> None:
    space = load_space("mbconv")
    feasible = feasible_set(space, Window(195_000_000, 200_000_000))
    sampler = SAMPLERS.build({"name": name, "startup": 4}, space=space, feasible=feasible, seed=0)
    for _ in range(count):
        values = sampler.ask()
        cost = feasible.cost(values)
        assert cost in feasible.window
        sampler.tell(values, Outcome(0.5, -cost / 1e9, cost))


def test_old_networks_leave_the_population() -> None:
    sampler = build("evolution")
    best = feasible_set(SPACE, WINDOW).draw(np.random.default_rng(0))
    sampler.tell(best, Outcome(1.0, 100.0, 1))
    for values in feasible_set(SPACE, WINDOW).random_draws(np.random.default_rng(1), 8):
        sampler.tell(values, Outcome(0.1, 0.1, 1))
    assert best not in [values for _, values in sampler._alive]  # type: ignore[attr-defined]


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tpe'"):
        SAMPLERS.build("tpee", space=SPACE, feasible=None, seed=0)
    with pytest.raises(ConfigError, match="tournament=99"):
        SAMPLERS.build({"name": "evolution", "tournament": 99}, space=SPACE, feasible=None, seed=0)
    with pytest.raises(ConfigError, match="startup"):
        SAMPLERS.build({"name": "tpe", "startp": 9}, space=SPACE, feasible=None, seed=0)
