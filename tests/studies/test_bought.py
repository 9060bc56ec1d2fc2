"""What a search bought: the best of n draws by two routes, equal number and equal cost, decisions, front."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from scalesearch.analysis import pareto_front
from scalesearch.config import to_mapping
from scalesearch.objective import AccuracyReward, ParetoReward, Window
from scalesearch.records import RecordFile
from scalesearch.samplers import SAMPLERS
from scalesearch.search import run_search
from scalesearch.spaces.amounts import exact_amounts
from scalesearch.spaces.feasible import feasible_set
from scalesearch.studies.bought import best_quantile, curves, curves_of, expected_best, front_of, importances_of, what_it_bought
from tests.toys import LadderToy, ToyEvaluator, ToySpace, truth

SPACE = ToySpace()
WINDOW = Window(100_000, 3_000_000)


@pytest.fixture(scope="module")
def feasible():
    return feasible_set(SPACE, WINDOW)


def searched(folder, feasible, evaluator=None, trials=40, sampler="evolution", objective=None):
    evaluator = evaluator or ToyEvaluator(folder / "log")
    with RecordFile(folder / "records.jsonl") as records:
        return run_search(SPACE, evaluator, SAMPLERS.build({"name": sampler}, space=SPACE, feasible=feasible, seed=0),
                          objective or AccuracyReward(), records=records, trials=trials, feasible=feasible, window=WINDOW, workers=0)


class Oracle:
    """A predictor that knows the truth up to 0.01."""

    def predict(self, rows):
        return np.array([truth(SPACE.decode(values)) for values in rows]), np.full(len(rows), 0.01)

    def importances(self):
        return {"kernel": 0.5, "layers": 0.3}


class Quick(ToyEvaluator):
    def predict(self, networks):
        return np.array([truth(network) for network in networks]), np.zeros(len(networks))


class Priced(ToyEvaluator):
    def expected_training_macs(self, architecture, rung=-1):
        return 2e6


def test_the_best_of_n_draws_is_what_drawing_finds():
    rng = np.random.default_rng(0)
    values = rng.normal(size=300)
    best = np.array([values[rng.integers(len(values), size=7)].max() for _ in range(20_000)])
    assert expected_best(values, 7) == pytest.approx(best.mean(), abs=0.02)
    assert best_quantile(values, 7, 0.1) == pytest.approx(np.quantile(best, 0.1), abs=0.05)
    assert expected_best(values, 1) == pytest.approx(values.mean()) and best_quantile(values, 1, 1.0) == values.max()


def test_a_search_is_put_beside_random_draws(tmp_path, feasible):
    found = searched(tmp_path, feasible)
    told = what_it_bought(found.records, SPACE, feasible, Quick(tmp_path / "log"), AccuracyReward()).curves
    assert told.kind == "measured" and told.cost == () and told.gain_at_cost is None
    assert told.networks[-1] == 40 and told.search[-1] == max(r.reward for r in found.records)
    assert list(told.search) == sorted(told.search) and list(told.random) == sorted(told.random)
    assert all(low <= high for low, high in zip(told.random_low, told.random_high, strict=True))
    assert told.gain_at_number == pytest.approx(told.search[-1] - expected_at(told, 40), abs=0.003)


def expected_at(told, count):
    return float(np.interp(count, told.trainings, told.random))


def test_needed_is_where_the_random_search_arrives():
    """The best of n even numbers in [0, 1] is n / (n + 1) on average: 0.9 with nine."""
    drawn, records = np.linspace(0.0, 1.0, 4000), [SimpleNamespace(id="a", training_macs=0.0)]
    assert curves("measured", drawn, records, {"a": 0.8999}, None).needed == 9
    assert curves("measured", drawn, records, {"a": 1.5}, None).needed is None
    assert curves("measured", drawn, records, {"a": 0.1}, None).needed == 1


def test_rungs_are_cheaper_than_whole_trainings(tmp_path, feasible):
    evaluator = LadderToy(tmp_path / "log", inline=False)
    evaluator.inline = True
    found = searched(tmp_path, feasible, evaluator, trials=27)
    assert max(r.rung for r in found.records) == 2
    evaluator.inline, price = False, 1e6
    evaluator.expected_training_macs = lambda network, rung=-1: 9 * price  # the toy's records say 1e6 a rung
    told = what_it_bought(found.records, SPACE, feasible, evaluator, AccuracyReward(), sampler=Oracle()).curves
    assert told.kind == "predicted" and told.networks[-1] == 27
    assert told.cost[-1] == pytest.approx(len(found.records) / 9) and told.cost[-1] < 27
    assert told.gain_at_cost > told.gain_at_number, "fewer random trainings for the cost than networks"
    best = max(truth(r.network) for r in found.records)
    assert best == pytest.approx(told.search[-1], abs=0.01) and told.search_at_cost[-1] == told.search[-1]


def test_doubt_of_the_predictor_is_part_of_random_draws(tmp_path, feasible):
    found = searched(tmp_path, feasible, trials=10)
    evaluator = Priced(tmp_path / "log", inline=False)

    class Doubtful(Oracle):
        def predict(self, rows):
            return super().predict(rows)[0], np.full(len(rows), 0.05)

    sure, unsure = (what_it_bought(found.records, SPACE, feasible, evaluator, AccuracyReward(), sampler=sampler).curves
                    for sampler in (Oracle(), Doubtful()))
    assert sure.doubt < 0.1 < 0.3 < unsure.doubt
    assert unsure.random[-1] > sure.random[-1] + 0.02 and unsure.search[-1] > sure.search[-1] + 0.01


def test_a_random_search_gains_nothing_over_random_draws(tmp_path, feasible):
    """By the predictor too: its doubt counts on both sides."""
    gains = []
    for seed in range(5):
        rows = feasible.random_draws(np.random.default_rng(seed), 30)
        records = [SimpleNamespace(id=str(i), values=row, ok=True, rung=0, training_macs=2e6, reward=0.5) for i, row in enumerate(rows)]
        told = what_it_bought_curves(records, feasible, Priced(tmp_path / "log", inline=False))
        gains.append(told.gain_at_number)
    assert abs(np.mean(gains)) < 0.01


def what_it_bought_curves(records, feasible, evaluator):
    return curves_of(records, SPACE, feasible, evaluator, AccuracyReward(), Oracle(), exact_amounts(SPACE), 0, 0)


def test_without_a_predictor_the_first_draws_stand_for_random_ones(tmp_path, feasible):
    found = searched(tmp_path, feasible, trials=12, sampler="random")
    evaluator = Priced(tmp_path / "log", inline=False)
    told = what_it_bought(found.records, SPACE, feasible, evaluator, AccuracyReward(), startup=12).curves
    assert told.kind == "startup" and told.draws == told.most == 12
    assert told.random[-1] == pytest.approx(expected_best(np.array([r.reward for r in found.records]), 12))
    assert told.cost[-1] == pytest.approx(6.0), "twelve trainings of half the price"
    assert what_it_bought(found.records, SPACE, feasible, evaluator, AccuracyReward()).curves is None
    assert what_it_bought([], SPACE, feasible, evaluator, AccuracyReward()).curves is None


def test_decisions_that_matter_come_first(tmp_path, feasible):
    found = searched(tmp_path, feasible, trials=100, sampler="random")
    told = {row.name: row for row in importances_of(found.records, SPACE, Oracle())}
    assert list(told)[:2] == ["kernel", "layers"] and told["kernel"].predictor == 0.5 and told["channels"].predictor is None
    assert sum(row.ped_anova for row in told.values()) == pytest.approx(1.0)
    assert importances_of(found.records[:5], SPACE, None) == ()


def test_ped_anova_finds_the_one_decision(tmp_path, feasible):
    class OneMatters(ToyEvaluator):
        def evaluate(self, architecture, *, seed, folder=None, rung=-1):
            from scalesearch.records import Evaluation

            return Evaluation(0.5 + 0.04 * architecture.stages[1].layers + 1e-4 * (architecture.stages[1].kernel == 7))

    found = searched(tmp_path, feasible, OneMatters(tmp_path / "log"), trials=100, sampler="random")
    assert importances_of(found.records, SPACE, None)[0].name == "layers"


def test_front_is_that_of_the_last_rung_and_in_the_objectives_cost(tmp_path, feasible):
    found = searched(tmp_path, feasible, LadderToy(tmp_path / "log"), trials=27)
    last = [r for r in found.records if r.rung == 2]
    assert {p.id for p in front_of(found.records)} == {r.id for r in pareto_front(last)}
    bought = what_it_bought(found.records, SPACE, feasible, Quick(tmp_path / "log"), ParetoReward(1e6, cost="params"))
    assert bought.cost == "params" and [p.cost for p in bought.front] == [p.params for p in bought.front]
    assert [p.accuracy for p in bought.front] == sorted(p.accuracy for p in bought.front)
    assert front_of(found.records, "latency_ms") == ()


def test_it_is_json(tmp_path, feasible):
    found = searched(tmp_path, feasible, trials=30)
    bought = what_it_bought(found.records, SPACE, feasible, Quick(tmp_path / "log"), AccuracyReward())
    assert json.loads(json.dumps(to_mapping(bought), allow_nan=False))["curves"]["kind"] == "measured"
