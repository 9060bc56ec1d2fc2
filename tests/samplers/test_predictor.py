"""What is particular to the predictor: beliefs, several fidelities, priors, fronts, and every way to have too little to go by."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.objective import OBJECTIVES, AccuracyReward, SoftReward, Window
from scalesearch.samplers import Outcome
from scalesearch.samplers.encoding import Features
from scalesearch.samplers.predictor import PredictorSampler
from scalesearch.spaces import Parameter, Space, load_space
from scalesearch.spaces.amounts import coded_space
from scalesearch.spaces.feasible import feasible_set

sys.path.insert(0, str(Path(__file__).parents[1]))
from toys import ToySpace, truth

TOY = ToySpace()
SMALL = load_space("mbconv", resolution=64)
WINDOW = Window(20_000_000, 26_000_000)


def accuracy(values: Mapping[str, Any]) -> float:
    """Large kernels and squeeze-excite are good, late ones twice as good as early ones."""
    return 0.3 + 0.02 * sum((1 + (int(name[5]) > 3)) * (value in (5, 0.25)) for name, value in values.items())


def outcome(space: Space, values: Mapping[str, Any], accuracy: float, share: float = 1.0) -> Outcome:
    macs = cost_of(space.decode(values)).macs
    return Outcome(accuracy, accuracy, macs, share)


def draws(space: Space, count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{p.name: p.choices[int(rng.integers(len(p.choices)))] for p in space.parameters} for _ in range(count)]


def taught(space: Space, count: int, noise: float = 0.0, **settings: Any) -> PredictorSampler:
    sampler = PredictorSampler(space, **settings)
    rng = np.random.default_rng(1)
    for values in draws(space, count):
        sampler.tell(values, outcome(space, values, accuracy(values) + noise * rng.normal()))
    return sampler


def test_it_finds_what_random_search_does_not() -> None:
    """In 24 proposals inside a window of an eighth of the space, against the best of 1,000 draws."""
    feasible = feasible_set(SMALL, WINDOW)
    sampler = PredictorSampler(SMALL, feasible, objective=AccuracyReward())
    found = []
    for _ in range(24):
        values = sampler.ask()
        assert values is not None and feasible.cost(values) in WINDOW
        found.append(accuracy(values))
        sampler.tell(values, outcome(SMALL, values, found[-1]))
    assert max(found) >= max(map(accuracy, feasible.random_draws(np.random.default_rng(0), 1000)))


def test_no_network_comes_twice_and_the_window_runs_out() -> None:
    """Of the 90 descriptions in the window 73 are different networks."""
    feasible = feasible_set(TOY, Window(400_000, 1_200_000))
    sampler = PredictorSampler(TOY, feasible, objective=SoftReward(1e6))
    ids = []
    while (values := sampler.ask()) is not None:
        network = TOY.decode(values)
        ids.append(network.id)
        # Every fourth answer comes never, every fourth says that it failed.
        if len(ids) % 4:
            sampler.tell(values, None if len(ids) % 4 == 1 else Outcome(truth(network), truth(network), cost_of(network).macs))
    assert len(ids) == len(set(ids)) == feasible.count


def test_proposals_in_flight_differ_by_more_than_a_detail() -> None:
    """What is pending counts as seen, so that a batch is spread around the summit instead of crowding at one slope."""
    sampler = taught(SMALL, 40, objective=AccuracyReward())
    batch = [sampler.ask() for _ in range(6)]
    distances = [sum(a[name] != b[name] for name in a) for i, a in enumerate(batch) for b in batch[:i] if a and b]
    assert len(distances) == 15 and min(distances) >= 1
    assert np.mean([accuracy(values) for values in batch if values]) > np.mean([accuracy(values) for values in draws(SMALL, 500, 3)])


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_observations_suffice_to_go_on(count: int) -> None:
    sampler = taught(SMALL, count, startup=1)
    assert sampler.ask() is not None
    assert len(sampler.recommend(5)) == count
    assert bool(sampler.importances()) == bool(count)
    if count:
        mean, deviation = sampler.predict(draws(SMALL, 4, 9))
        assert np.isfinite(mean).all() and (deviation > 0).all()
    else:
        with pytest.raises(ConfigError, match="knows no accuracy yet"):
            sampler.predict(draws(SMALL, 4))


def test_equal_accuracies_and_failures_only() -> None:
    sampler = PredictorSampler(TOY, objective=AccuracyReward(), startup=2)
    for values in draws(TOY, 12):
        sampler.tell(values, outcome(TOY, values, 0.1))
    assert sampler.ask() is not None
    assert sampler.predict(draws(TOY, 3))[0] == pytest.approx(0.1, abs=1e-3)
    assert sum(sampler.importances().values()) <= 1 + 1e-9
    failing = PredictorSampler(TOY, objective=AccuracyReward(), startup=2)
    for _ in range(8):
        values = failing.ask()
        assert values is not None
        failing.tell(values, None)
    assert failing.recommend(3) == []


def test_prediction_is_calibrated_and_the_recommendation_is_not_the_luckiest() -> None:
    sampler = taught(SMALL, 80, noise=0.02, objective=AccuracyReward())
    others = draws(SMALL, 200, seed=5)
    truths = np.array([accuracy(values) for values in others])
    mean, deviation = sampler.predict(others)
    assert np.corrcoef(mean, truths)[0, 1] > 0.9
    assert 0.7 < np.sqrt((((mean - truths) / deviation) ** 2).mean()) < 1.4
    worst = min(draws(SMALL, 80), key=accuracy)
    lucky = taught(SMALL, 80, noise=0.02, objective=AccuracyReward())
    lucky.tell(worst, outcome(SMALL, worst, max(map(accuracy, draws(SMALL, 80))) + 0.06))
    assert lucky.recommend(1)[0] != worst


def test_importances_are_main_effects() -> None:
    """Late kernels and squeeze-excite explain 4/5 of the variance (weights 2 against 1), layers and expansion nothing."""
    importances = taught(SMALL, 150, objective=AccuracyReward()).importances()
    assert set(importances) == {parameter.name for parameter in SMALL.parameters}
    matter = {name: share for name, share in importances.items() if name.endswith(("kernel", "se_ratio"))}
    weights = {name: (1 + (int(name[5]) > 3)) ** 2 for name in matter}
    expected = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    assert matter == pytest.approx(expected, abs=0.04)
    assert 0.9 < sum(matter.values()) <= sum(importances.values()) <= 1 + 1e-9


def test_low_shares_teach_about_the_whole() -> None:
    """60 networks after a ninth of the training, eight of them to the end: the offset is learnt and the ranking kept."""
    sampler = PredictorSampler(SMALL, objective=AccuracyReward())
    rows = draws(SMALL, 60)
    for values in rows:
        sampler.tell(values, outcome(SMALL, values, 0.6 * accuracy(values), share=1 / 9))
    for values in rows[:8]:
        sampler.tell(values, outcome(SMALL, values, accuracy(values)))
    others = draws(SMALL, 200, seed=5)
    mean, _ = sampler.predict(others)
    truths = np.array([accuracy(values) for values in others])
    assert np.corrcoef(mean, truths)[0, 1] > 0.85
    assert abs(float(np.mean(mean - truths))) < 0.05, "not the accuracy after a ninth, which is 0.2 lower"
    assert sampler.recommend(1)[0] in rows[:8]


def test_cheap_scores_guide_the_first_proposals_and_are_corrected() -> None:
    scored = draws(SMALL, 150, seed=7)
    sampler = PredictorSampler(SMALL, objective=AccuracyReward(), startup=4)
    sampler.learn_prior(scored, [0.5 * accuracy(values) - 0.1 for values in scored])
    asked = [sampler.ask() for _ in range(4)]
    assert max(accuracy(values) for values in asked if values) > max(map(accuracy, draws(SMALL, 20, 11)))
    for values in draws(SMALL, 10):
        sampler.tell(values, outcome(SMALL, values, accuracy(values)))
    others = draws(SMALL, 200, seed=5)
    truths = np.array([accuracy(values) for values in others])
    with_scores = np.abs(sampler.predict(others)[0] - truths).mean()
    assert with_scores < 0.6 * np.abs(taught(SMALL, 10).predict(others)[0] - truths).mean()
    misled = PredictorSampler(SMALL, objective=AccuracyReward())
    misled.learn_prior(scored, [1 - accuracy(values) for values in scored])
    for values in draws(SMALL, 40):
        misled.tell(values, outcome(SMALL, values, accuracy(values)))
    assert np.corrcoef(misled.predict(others)[0], truths)[0, 1] > 0.8, "a slope below 0 is fitted too"


def test_a_front_is_searched_along_its_length() -> None:
    """Bigger is better here; with a goal for each the proposals still reach from the cheap to the dear."""
    feasible = feasible_set(SMALL, Window(10_000_000, 40_000_000))
    pareto = OBJECTIVES.build("pareto", target=20_000_000.0)
    sampler = PredictorSampler(SMALL, feasible, objective=pareto)
    costs = []
    for _ in range(24):
        values = sampler.ask()
        assert values is not None
        costs.append(feasible.cost(values))
        sampler.tell(values, Outcome(costs[-1] / 1e8, costs[-1] / 1e8, costs[-1]))
    assert min(costs[8:]) < 15_000_000 and max(costs[8:]) > 28_000_000


def test_windows_and_rewards_in_measured_units() -> None:
    """A price per block, a cost of the whole network, and an objective that asks for a measured amount."""
    def latency(rows: Any) -> dict[str, Any]:
        return {"step_ms": np.array([1 + values["stage1.layers"] for values in rows], dtype=np.float64)}

    reward = OBJECTIVES.build("training_aware", target=20_000_000.0)
    by_price = feasible_set(SMALL, Window(0, 15_000, "latency_ns"), price=lambda block: 1000)
    whole = feasible_set(TOY, Window(1, 3, "memory_bytes"), amount=lambda network: network.stages[1].layers)
    for space, feasible in ((SMALL, by_price), (TOY, whole)):
        sampler = PredictorSampler(space, feasible, objective=reward if space is SMALL else None, amounts=latency, startup=2)
        for _ in range(6):
            values = sampler.ask()
            assert values is not None and feasible.cost(values) in feasible.window
            sampler.tell(values, outcome(space, values, 0.5))


def test_features_keep_order_and_share_a_scale() -> None:
    class Mixed(ToySpace):
        parameters = (Parameter("layers", (1, 2, 3, 4)), Parameter("channels", (16,)), Parameter("kernel", (3, 5, 7)),
                      Parameter("expansion", (1, 4, 6), ordered=False))

    space = Mixed()
    coded = coded_space(space)
    features = Features(space.parameters, coded)
    assert features.groups.tolist() == [0, 1, 2, 2, 2, 3, 4]
    grid = np.stack(np.meshgrid(*map(np.arange, coded.radices), indexing="ij"), -1).reshape(-1, 4)
    columns = features(grid)[:, :5]
    assert columns.mean(axis=0) == pytest.approx(0, abs=1e-12)
    assert columns[:, :2].std(axis=0) == pytest.approx(1)
    assert (columns[:, 2:] ** 2).sum(axis=1) == pytest.approx(1), "unordered choices are equally far apart, and together one unit"
    layers = np.unique(columns[:, 0])
    assert np.diff(layers)[0] > np.diff(layers)[2], "logarithms"


def test_parameters_of_one_kind_are_summed() -> None:
    coded = coded_space(SMALL)
    features = Features(SMALL.parameters, coded)
    assert len(features.groups) == 28 + 4 + 2
    codes = coded.encode(draws(SMALL, 50))
    columns = features(codes)
    assert columns[:, 28] == pytest.approx(columns[:, :28:4].sum(axis=1) / np.sqrt(7)), "of expansion"


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="startup=0"):
        PredictorSampler(TOY, startup=0)
