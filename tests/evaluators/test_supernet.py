"""The evaluator of shared weights: trained once, gone on with, the same answer every time, and what it refuses."""

import dataclasses
import pickle
import threading

import numpy as np
import pytest
import torch

from scalesearch import stopping
from scalesearch.architecture import Architecture, Head, Stage, Stem, load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, EvaluatorError
from scalesearch.evaluators import EVALUATORS, supernet
from scalesearch.evaluators.supernet import SupernetEvaluator
from scalesearch.evaluators.trained import binomial_deviation
from scalesearch.networks.supernet import Supernet, random_network
from scalesearch.networks.weights import load_weights
from scalesearch.screen import Screen
from scalesearch.spaces import load_space
from scalesearch.spaces.stages import mbconv
from scalesearch.training import loop
from scalesearch.training.augment import Images
from scalesearch.training.data import DataSettings
from scalesearch.training.evaluation import evaluate
from scalesearch.training.recipe import Recipe
from scalesearch.training.supernet import recalibrate, step_macs

SKELETON = Architecture(Stem(8), (Stage("mbconv", 3, 8, 1), Stage("mbconv", 3, 16, 2, stride=2, expansion=6)), Head(16), 10, 8)
SPACE = mbconv(SKELETON)
RECIPE = Recipe(epochs=2, batch=32, learning_rate=0.1, warmup=1, shift=0.0, flip=False, bn_momentum=0.2)
DATA = DataSettings(limit=120)


def made(tmp_path, **changes):
    """Untrained, with a cache of its own."""
    data = dataclasses.replace(DATA, cache=tmp_path)
    return dataclasses.replace(SupernetEvaluator(data, RECIPE, epochs=2, random=1, images=10, recalibration=64, device="cpu", space=SPACE),
                               **changes)


def networks(count):
    generator = np.random.default_rng(0)
    return [random_network(SPACE, generator) for _ in range(count)]


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    evaluator = made(tmp_path_factory.mktemp("cache"))
    evaluator.prepare()
    return evaluator


def test_the_evaluation(evaluator):
    network = networks(1)[0]
    result = evaluator.evaluate(network, seed=3)
    assert result.deviation == binomial_deviation(result.accuracy, 10) and result.seconds > 0 and result.device == "cpu, 1 thread"
    assert result.details["validation_images"] == 10 and result.details["recalibration_images"] == 64
    assert result.details["supernet"] == evaluator.training_fingerprint
    assert result.training_macs == 74 * cost_of(network).macs == evaluator.expected_training_macs(network)


def test_the_same_network_has_the_same_accuracy_whatever_came_between(evaluator):
    first, other = networks(2)
    results = [evaluator.evaluate(network, seed=seed) for seed, network in enumerate((first, other, first, SPACE.baseline, first))]
    losses = [result.details["loss"] for result in results]
    assert losses[0] == losses[2] == losses[4] != losses[1]


def test_against_a_network_cut_out_and_recalibrated(evaluator):
    network, split, cpu = networks(3)[2], evaluator.dataset().split(), torch.device("cpu")
    shared = Supernet(SPACE, bn_momentum=0.2, seed=5)
    load_weights(shared, evaluator.folder / supernet.WEIGHTS)
    statistics = [torch.tensor(values) for values in split.statistics]
    generator = np.random.default_rng(0)
    rows = [np.random.default_rng(0).permutation(split.train)[:64], generator.permutation(split.validation)[:10]]
    calibration, validation = (Images(split.data, chosen, 8, cpu, 1e9) for chosen in rows)
    cut = shared.cut(network)
    recalibrate(cut, calibration, *statistics)
    accuracy, loss = evaluate(cut, validation, *statistics)
    result = evaluator.evaluate(network)
    assert result.accuracy == accuracy and result.details["loss"] == pytest.approx(loss, rel=1e-4)


def test_it_is_trained_once_by_whoever_comes_first(tmp_path, monkeypatch):
    shared, trainings, train = made(tmp_path, epochs=1), [], SupernetEvaluator._train

    def counted(self, on_epoch):
        trainings.append(threading.get_ident())
        train(self, on_epoch)

    monkeypatch.setattr(SupernetEvaluator, "_train", counted)
    spent = []
    workers = [threading.Thread(target=lambda: spent.append(shared.prepare())) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(trainings) == 1 and len(spent) == 2 and spent[0] == spent[1]
    # One image more to judge by is another evaluation, but no other supernet.
    assert made(tmp_path, epochs=1, images=11).prepare() == spent[0] and len(trainings) == 1
    assert spent[0].training_macs == 3 * step_macs(SPACE, 1, 8) * 96 == made(tmp_path / "other", epochs=1).expected_supernet_macs()
    assert shared.expected_supernet_macs() == 0


def test_waiting_for_another_ends_when_asked_to_stop(tmp_path, monkeypatch):
    shared = made(tmp_path)
    monkeypatch.setattr(stopping, "requested", lambda: True)
    with supernet._locked(shared.folder / "lock"), pytest.raises(stopping.Terminated):
        shared.prepare()


def test_a_training_that_was_cut_off_goes_on(tmp_path, evaluator, monkeypatch):
    shared, steps = made(tmp_path), []

    def asked_to_stop(self, stop):
        steps.append((self.epoch, self.place))
        return steps[-1] == (1, 1) and len(steps) < 6

    monkeypatch.setattr(loop._Run, "asked_to_stop", asked_to_stop)
    with pytest.raises(stopping.Terminated):
        shared.prepare()
    assert sorted(path.name for path in shared.folder.iterdir()) == ["checkpoint.pt", "history.csv", "lock"]
    shared.prepare()
    assert steps == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]  # none is taken twice
    assert sorted(path.name for path in shared.folder.iterdir()) == ["history.csv", "lock", supernet.WEIGHTS]
    network = networks(1)[0]
    assert shared.evaluate(network).details["loss"] == evaluator.evaluate(network).details["loss"]


def test_preparing_shows_epochs(tmp_path, capsys):
    made(tmp_path, epochs=1).prepare(Screen())
    assert "supernet: 1/1 in" in (shown := capsys.readouterr().err) and "largest network" in shown


def test_fingerprint_changes_with_what_changes_results_and_nothing_else(evaluator):
    def changed(**changes):
        return dataclasses.replace(evaluator, **changes).fingerprint

    reference = evaluator.fingerprint
    assert len(reference) == 12 and reference == changed(threads=2) == changed(device=torch.device("cpu"))
    other = mbconv(SKELETON.replace(resolution=16))
    assert len({reference, changed(images=None), changed(recalibration=32), changed(random=3), changed(epochs=3), changed(space=other),
                changed(recipe=Recipe()), changed(data=dataclasses.replace(evaluator.data, limit=100))}) == 8
    assert reference == changed(data=dataclasses.replace(evaluator.data, root="/somewhere"))


def test_epochs_are_enough_for_all_networks(tmp_path):
    assert made(tmp_path).own_recipe == dataclasses.replace(RECIPE, epochs=2)
    assert made(tmp_path, epochs=None).own_recipe.epochs == 334  # 110 images are three batches of 32 an epoch, a thousand steps 334
    assert made(tmp_path, epochs=None, recipe=dataclasses.replace(RECIPE, epochs=400)).own_recipe.epochs == 400


@pytest.mark.parametrize(("network", "message"), [
    (SKELETON.replace(classes=7), "has 7 classes, data=digits has 10"),
    (SKELETON.replace(stages=SKELETON.stages[:1]), "holds the networks of its space only: .*1 stages, not 2; write evaluator=trained"),
    (SKELETON.replace(resolution=16), "its resolution is 16, not 8"),
])
def test_networks_that_do_not_fit(evaluator, network, message):
    with pytest.raises(EvaluatorError, match=message):
        evaluator.check(network)
    with pytest.raises(EvaluatorError, match=message):
        evaluator.evaluate(network)


def test_settings_that_cannot_be(tmp_path):
    for setting, value in (("epochs", 0), ("random", -1), ("images", 0), ("recalibration", 1), ("threads", 0)):
        with pytest.raises(ConfigError, match=f"evaluator.{setting}={value}: it is at least"):
            SupernetEvaluator(**{setting: value})
    with pytest.raises(ConfigError, match=r"networks of stages \(mbconv, mbconv_v2, mnasnet\); space compound has none"):
        SupernetEvaluator().over(load_space("compound"))
    with pytest.raises(EvaluatorError, match="no space yet"):
        made(tmp_path, space=None).check(SKELETON)
    with pytest.raises(EvaluatorError, match="has 1000 classes"):
        made(tmp_path).over(load_space("mbconv")).check(load_architecture("efficientnet_b0"))


def test_damaged_weights_are_one_line(tmp_path):
    shared = made(tmp_path)
    shared.folder.mkdir(parents=True)
    (shared.folder / supernet.WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        shared.evaluate(SKELETON)


def test_the_object_pickles_and_settings_build_it(evaluator):
    copy = pickle.loads(pickle.dumps(evaluator))
    assert copy.fingerprint == evaluator.fingerprint and copy.is_trained
    built = EVALUATORS.build({"name": "supernet", "data": {"name": "digits"}, "recipe": {"epochs": 3}, "images": "500"}, space=SPACE)
    assert built.name == "supernet" and not built.inline and built.images == 500 and built.space is SPACE and "digits" in built.note
