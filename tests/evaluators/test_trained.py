"""The evaluator that trains: what it reports, writes, continues, refuses, and that test images stay out of it."""

import csv
import math
import pickle

import numpy as np
import pytest
import torch

from scalesearch import stopping
from scalesearch.architecture import Architecture, load_architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError, EvaluatorError
from scalesearch.evaluators import EVALUATORS, trained
from scalesearch.evaluators.trained import TrainedEvaluator, binomial_deviation
from scalesearch.scaling import ScalingRule
from scalesearch.training import loop
from scalesearch.training.data import Dataset, DataSettings
from scalesearch.training.recipe import Recipe

NETWORK = ScalingRule().scale(load_architecture("efficientnet_b0_small"), 0.2, 0.25, 8)
RECIPE = Recipe(epochs=2, batch=32, learning_rate=0.2, warmup=1, shift=0.0, bn_momentum=0.2)
DATA = DataSettings(limit=120)


@pytest.fixture(scope="module")
def evaluator():
    return TrainedEvaluator(DATA, RECIPE, folds=3, device="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    evaluator = TrainedEvaluator(DATA, RECIPE, folds=3, device="cpu")
    folder = tmp_path_factory.mktemp("run") / "candidate"
    return evaluator, folder, evaluator.evaluate(NETWORK, seed=1, folder=folder)


def test_the_evaluation(finished):
    evaluator, _, result = finished
    details = result.details
    assert 0 <= result.accuracy <= 1 and result.seconds > 0 and result.device == "cpu, 1 thread"
    assert details["train_images"] == 80 and details["validation_images"] == 40 and details["fold"] == 1 and details["epochs"] == 2
    assert result.deviation == binomial_deviation(result.accuracy, 40)
    assert result.training_macs == 3 * cost_of(NETWORK).macs * 128 == evaluator.expected_training_macs(NETWORK)
    assert [row[0] for row in details["history"]] == [1, 2] and details["history"][-1][1] == result.accuracy


def test_the_folder(finished):
    evaluator, folder, result = finished
    assert sorted(path.name for path in folder.iterdir()) == ["architecture.yaml", "checkpoint.pt", "history.csv"]
    assert load_architecture(folder / "architecture.yaml") == NETWORK
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert float(rows[-1]["accuracy"]) == result.accuracy and float(rows[-1]["training_macs"]) == result.training_macs


def test_the_same_seed_is_the_same_result_and_a_finished_one_is_read_back(finished):
    evaluator, folder, result = finished
    assert evaluator.evaluate(NETWORK, seed=1, folder=folder) == result
    fresh = evaluator.evaluate(NETWORK, seed=1)
    assert (fresh.accuracy, fresh.details["loss"]) == (result.accuracy, result.details["loss"])
    other = evaluator.evaluate(NETWORK, seed=4)  # the same fold from other weights
    assert other.details["fold"] == 1 and other.details["loss"] != result.details["loss"]


def test_an_interrupted_evaluation_goes_on_where_it_was(finished, tmp_path, monkeypatch):
    evaluator, _, result = finished
    steps = []

    def asked_to_stop(self, stop):
        steps.append((self.epoch, self.place))
        return steps[-1] == (1, 1) and len(steps) < 5

    monkeypatch.setattr(loop._Run, "asked_to_stop", asked_to_stop)
    with pytest.raises(stopping.Terminated):
        evaluator.evaluate(NETWORK, seed=1, folder=tmp_path)
    again = evaluator.evaluate(NETWORK, seed=1, folder=tmp_path)
    assert steps == [(0, 1), (0, 2), (1, 1), (1, 2)]  # two steps to an epoch, none taken twice
    assert (again.accuracy, again.details["loss"]) == (result.accuracy, result.details["loss"])


def test_the_test_images_are_read_by_test_accuracy_only(finished, monkeypatch):
    evaluator, folder, _ = finished
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "test", property(lambda self: pytest.fail("the test images were read")))
        evaluator.evaluate(NETWORK, seed=0)
    result = evaluator.test_accuracy(NETWORK, seed=1, folder=folder)
    assert result.details["test_images"] == 359 and 0 <= result.accuracy <= 1
    assert result.deviation == binomial_deviation(result.accuracy, 359)


def test_test_accuracy_against_the_weights_in_the_checkpoint(finished):
    from scalesearch.networks.build import build_model

    evaluator, folder, _ = finished
    data, split = evaluator.dataset(), evaluator.dataset().split(1, 3)
    model = build_model(NETWORK)
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["averaged"])
    mean, deviation = (np.array(v) for v in split.statistics)
    logits = model.eval()(torch.tensor(((data.test.images / 255 - mean) / deviation).transpose(0, 3, 1, 2), dtype=torch.float32))
    expected = (logits.argmax(1).numpy() == data.test.labels).mean()
    assert evaluator.test_accuracy(NETWORK, seed=1, folder=folder).accuracy == pytest.approx(expected, abs=1 / 359)


def test_test_accuracy_without_a_training(evaluator, tmp_path):
    with pytest.raises(EvaluatorError, match="checkpoint.pt: no finished training here"):
        evaluator.test_accuracy(NETWORK, seed=0, folder=tmp_path)


@pytest.mark.parametrize(("network", "message"), [
    (NETWORK.replace(classes=7), "has 7 classes, data=digits has 10; set classes=10"),
    (NETWORK.replace(image_channels=1), "takes 1 channels; images are stored as RGB"),
    (NETWORK.replace(resolution=4), "divides 4 px by 8, so its last stride finds one pixel only; set resolution=8"),
])
def test_networks_that_do_not_fit(evaluator, network, message):
    with pytest.raises(EvaluatorError, match=message):
        evaluator.check(network)
    with pytest.raises(EvaluatorError, match=message):
        evaluator.evaluate(network, seed=0)


def test_progressive_learning_that_begins_too_small(evaluator):
    growing = TrainedEvaluator(DATA, Recipe(epochs=4, stages=2, size=(0.2, 1.0)), device="cpu")
    growing.check(NETWORK.replace(resolution=32))
    with pytest.raises(EvaluatorError, match=r"the 3 px that recipe.size=\(0.2, 1.0\) begins with by 8, .* begin with 0.50 or more"):
        growing.check(NETWORK.replace(resolution=16))


def test_fingerprint_changes_with_what_changes_results_and_nothing_else(evaluator):
    import dataclasses

    def changed(**changes):
        return dataclasses.replace(evaluator, **changes).fingerprint

    reference = evaluator.fingerprint
    assert len(reference) == 12 and reference == TrainedEvaluator(DATA, RECIPE, 3, "cpu").fingerprint
    assert reference == changed(threads=2)
    assert len({reference, changed(folds=1), changed(recipe=Recipe()), changed(data=DataSettings(limit=130)),
                changed(data=DataSettings(limit=120, seed=1))}) == 5
    # Where the images lie or are kept does not matter.
    assert reference == changed(data=dataclasses.replace(DATA, root="/somewhere"))


def test_the_constructor_decodes_nothing_and_the_object_pickles_small(tmp_path):
    cheap = TrainedEvaluator(DataSettings("folder", tmp_path / "missing"))
    assert pickle.loads(pickle.dumps(cheap)) == cheap
    used = TrainedEvaluator(DATA, RECIPE, 3, "cpu")
    used.check(NETWORK)
    assert len(pickle.dumps(used)) < 2000


def test_running_out_of_memory_is_one_line(evaluator, monkeypatch):
    from scalesearch.networks import build

    errors = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), MemoryError(),
              RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried 1 byte")]

    for error in errors:
        def raising(*_, error=error, **__):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(build, "build_model", raising)
            with pytest.raises(EvaluatorError, match="out of memory on cpu, 1 thread: batch 32 at 8 px does not fit, nor do its micro"):
                evaluator.evaluate(NETWORK, seed=0)


def test_other_errors_stay_what_they_are(evaluator, monkeypatch):
    from scalesearch.networks import build

    monkeypatch.setattr(build, "build_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluator.evaluate(NETWORK, seed=0)


def test_a_loss_that_is_not_finite_is_one_line():
    wild = TrainedEvaluator(DATA, Recipe(epochs=2, batch=32, learning_rate=1e30, rate_batch=0, warmup=0), device="cpu")
    with pytest.raises(loop.TrainingDiverged, match="the loss is not finite at step"):
        wild.evaluate(NETWORK, seed=0)


def test_the_thread_count_is_put_back(evaluator, monkeypatch):
    seen = []
    original = loop._Run.begin_epoch
    monkeypatch.setattr(loop._Run, "begin_epoch", lambda self: seen.append(torch.get_num_threads()) or original(self))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        evaluator.evaluate(NETWORK, seed=0)
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_from_settings_by_name():
    built = EVALUATORS.build({"name": "trained", "data": {"name": "digits", "limit": "1K"}, "recipe": {"epochs": 3}, "folds": "5"})
    assert built == TrainedEvaluator(DataSettings(limit=1000), Recipe(epochs=3), 5)
    assert built.name == "trained" and not built.inline and "digits" in built.note
    with pytest.raises(ConfigError, match="evaluator.folds=0: it is at least 1"):
        TrainedEvaluator(folds=0)


def test_binomial_deviation():
    assert binomial_deviation(0.9, 400) == pytest.approx(0.015)
    assert binomial_deviation(1.0, 50) == pytest.approx(math.sqrt(0.01 * 0.99 / 50)) == binomial_deviation(0.0, 50)


def test_images_are_opened_once_a_process(evaluator, monkeypatch):
    evaluator.dataset()
    monkeypatch.setattr(trained, "load_data", lambda settings: pytest.fail("opened again"))
    assert evaluator.dataset() is TrainedEvaluator(DATA).dataset()


def test_architecture_yaml_is_the_network_with_its_name(finished):
    _, folder, _ = finished
    assert isinstance(load_architecture(folder / "architecture.yaml"), Architecture)
    assert load_architecture(folder / "architecture.yaml").name == NETWORK.name
