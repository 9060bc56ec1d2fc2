"""Scores of a supernet: which networks, resumed, and how far they agree with trainings."""

import dataclasses

import pytest

from scalesearch.architecture import Architecture, Head, Stage, Stem, blocks
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, RunError
from scalesearch.evaluators.supernet import SupernetEvaluator
from scalesearch.objective import Window
from scalesearch.records import RecordFile
from scalesearch.spaces.feasible import feasible_set
from scalesearch.spaces.stages import mbconv
from scalesearch.studies.prior import agreement, draw_networks, prior_evaluator, supernet_prior

SKELETON = Architecture(Stem(8), (Stage("mbconv", 3, 8, 1), Stage("mbconv", 3, 16, 2, stride=2, expansion=6)), Head(16), 10, 8)
SPACE = mbconv(SKELETON)
FEASIBLE = feasible_set(SPACE, Window(100_000, 200_000))
DATA = {"name": "digits", "limit": 120}
RECIPE = {"epochs": 1, "batch": 64, "learning_rate": 0.1, "warmup": 0, "shift": 0.0, "flip": False, "bn_momentum": 0.2}
SETTINGS = {"epochs": 1, "random": 1, "images": 10, "recalibration": 64, "device": "cpu"}


def scored(records, count):
    return supernet_prior(SPACE, FEASIBLE, DATA, RECIPE, records, count, settings=SETTINGS, executor="inline")


def test_scores_of_networks_of_the_window(tmp_path, monkeypatch):
    records = RecordFile(tmp_path / "records.jsonl")
    prior = scored(records, 3)
    networks = [SPACE.decode(values) for values in prior.rows]
    assert prior.name == "supernet" and len(prior.accuracies) == 3 and prior.failures == 0
    assert all(cost_of(network).macs in FEASIBLE.window for network in networks) and len({blocks(n) for n in networks}) == 3
    assert all(0 <= accuracy <= 1 for accuracy in prior.accuracies)
    assert prior.supernet.epochs == 1 and prior.supernet.training_macs > 0 and prior.seconds > 0
    assert [(r.origin, r.accuracy, dict(r.values)) for r in records] == [
        ("prior", accuracy, dict(values)) for accuracy, values in zip(prior.accuracies, prior.rows, strict=True)]

    # Once more with more of them: the first are on record.
    judged, evaluate = [], SupernetEvaluator.evaluate

    def counted(self, architecture, **how):
        judged.append(architecture.id)
        return evaluate(self, architecture, **how)

    monkeypatch.setattr(SupernetEvaluator, "evaluate", counted)
    again = scored(records, 5)
    assert again.rows[:3] == prior.rows and again.accuracies[:3] == prior.accuracies and len(judged) == 2

    # How far they agree: with themselves wholly, as far as they differ at all.
    evaluator = prior_evaluator(SPACE, DATA, RECIPE, SETTINGS)
    reached = [float(i) for i in range(4)] + [None]
    found = agreement(evaluator, [SPACE.decode(values) for values in again.rows], reached, records, executor="inline")
    assert found.n == 4 and len(judged) == 2


def test_networks_are_drawn_once_each_and_the_same_ones_for_a_seed():
    first, again, other = (draw_networks(SPACE, FEASIBLE, 20, seed) for seed in (0, 0, 1))
    assert [network for _, network in first] == [network for _, network in again] != [network for _, network in other]
    assert len({blocks(network) for _, network in first}) == 20
    narrow = feasible_set(SPACE, Window(cost_of(SKELETON).macs, cost_of(SKELETON).macs))
    assert len(draw_networks(SPACE, narrow, 100, 0)) == narrow.count < 100


def test_what_it_refuses(tmp_path, monkeypatch):
    records = RecordFile(tmp_path / "records.jsonl")
    with pytest.raises(ConfigError, match="prior networks=0: at least one"):
        scored(records, 0)
    with pytest.raises(ConfigError, match="data="):
        supernet_prior(SPACE, FEASIBLE, None, RECIPE, records, 3)
    monkeypatch.setattr(SupernetEvaluator, "evaluate", lambda self, architecture, **how: 1 / 0)
    with pytest.raises(RunError, match="division by zero"):
        scored(records, 2)


def test_a_prior_is_a_value(tmp_path):
    from scalesearch.config import to_mapping
    from scalesearch.evaluators.supernet import Spent
    from scalesearch.studies.prior import Prior

    prior = Prior(({"stage1.kernel": 3},), (0.5,), 1.0, Spent(10.0, 1e9, 4, 0.7))
    assert to_mapping(prior)["supernet"]["seconds"] == 10.0 and dataclasses.replace(prior) == prior
