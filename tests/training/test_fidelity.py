"""Cheaper trainings: what each rung trains, that epochs resume, and that the last rung is the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scalesearch.architecture import load_architecture
from scalesearch.errors import ConfigError, EvaluatorError
from scalesearch.evaluators.trained import TrainedEvaluator
from scalesearch.scaling import ScalingRule
from scalesearch.training.data import DataSettings
from scalesearch.training.fidelity import Fidelity, geometric
from scalesearch.training.recipe import Recipe

NETWORK = ScalingRule().scale(load_architecture("efficientnet_b0_small"), 0.2, 0.25, 8)
RECIPE = Recipe(epochs=4, batch=32, learning_rate=0.2, warmup=1, shift=0.0, bn_momentum=0.2)
WHOLE = TrainedEvaluator(DataSettings(limit=120), RECIPE, device="cpu")


def test_rungs_of_epochs_are_the_whole_training_with_pauses(tmp_path: Path) -> None:
    climbing = replace(WHOLE, rungs=(0.25, 0.5, 1.0))
    whole = WHOLE.evaluate(NETWORK, seed=3, folder=tmp_path / "whole")
    steps = [climbing.evaluate(NETWORK, seed=3, folder=tmp_path / "steps", rung=rung) for rung in range(3)]
    history = [row[1] for row in whole.details["history"]]
    assert [step.accuracy for step in steps] == [history[0], history[1], history[3]] and steps[2].accuracy == whole.accuracy
    assert [step.details["epochs"] for step in steps] == [1, 2, 4]
    assert sum(step.training_macs for step in steps) == pytest.approx(whole.training_macs)
    assert [step.training_macs / whole.training_macs for step in steps] == pytest.approx([0.25, 0.25, 0.5])
    assert steps[2].details["history"][-1][3] == pytest.approx(sum(step.seconds for step in steps))
    assert [climbing.expected_training_macs(NETWORK, rung) / whole.training_macs for rung in range(3)] == pytest.approx([0.25, 0.5, 1])


def test_a_rung_without_a_folder_starts_from_the_beginning_and_ends_the_same(tmp_path: Path) -> None:
    climbing = replace(WHOLE, rungs=(0.5, 1.0))
    assert climbing.evaluate(NETWORK, seed=1, rung=1).accuracy == WHOLE.evaluate(NETWORK, seed=1).accuracy


def test_the_rungs_are_part_of_the_fingerprint() -> None:
    assert len({WHOLE.fingerprint, replace(WHOLE, rungs=(0.5, 1.0)).fingerprint, replace(WHOLE, rungs=(0.25, 1.0)).fingerprint,
                replace(WHOLE, rungs=(0.5, 1.0), fidelity="data").fingerprint}) == 4
    assert replace(WHOLE, fidelity="data").fingerprint == WHOLE.fingerprint, "with one rung there is nothing cheaper"


@pytest.mark.parametrize("kind", ["resolution", "width", "data"])
def test_the_other_proxies_are_trainings_of_their_own(tmp_path: Path, kind: str) -> None:
    evaluator = replace(WHOLE, fidelity=kind, rungs=(0.5, 1.0), recipe=replace(RECIPE, epochs=1))
    network = NETWORK if kind != "resolution" else NETWORK.replace(resolution=16)
    small, whole = (evaluator.evaluate(network, seed=0, folder=tmp_path / "here", rung=rung) for rung in (0, 1))
    assert small.training_macs < whole.training_macs and small.training_macs == evaluator.expected_training_macs(network, 0)
    trained = load_architecture(tmp_path / "here" / "rung-0" / "architecture.yaml")
    assert load_architecture(tmp_path / "here" / "architecture.yaml") == network
    assert trained.resolution == (8 if kind == "resolution" else network.resolution)
    assert (trained.stages[-1].channels < network.stages[-1].channels) == (kind == "width")
    assert (small.details["train_images"] < whole.details["train_images"]) == (kind == "data")
    assert small.details["validation_images"] == whole.details["validation_images"]


def test_a_larger_share_of_the_images_holds_the_smaller() -> None:
    split = WHOLE.dataset().split(0, 1)
    ladder = Fidelity("data", (0.25, 0.5, 1.0))
    rows = [set(ladder.split(split, rung).train.tolist()) for rung in range(3)]
    assert rows[0] < rows[1] < rows[2] == set(split.train.tolist()) and len(rows[0]) == round(0.25 * len(split.train))
    assert np.array_equal(ladder.split(split, 0).validation, split.validation)


def test_shares_of_successive_halving() -> None:
    assert geometric(3, 3) == pytest.approx((1 / 9, 1 / 3, 1)) and geometric(1, 3) == (1.0,)
    assert Fidelity("epochs", geometric(3, 3)).epochs(9) == (1, 3, 9)


@pytest.mark.parametrize(("kind", "shares", "message"), [
    ("epochs", (0.5,), "ascending to 1"), ("epochs", (0.5, 0.2, 1.0), "ascending to 1"), ("epochs", (0.0, 1.0), "above 0"),
    ("epoch", (1.0,), "fidelity=epoch: choose one of epochs, resolution, width, data")])
def test_wrong_rungs_are_refused(kind: str, shares: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Fidelity(kind, shares)  # type: ignore[arg-type]


def test_two_rungs_in_one_epoch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"of 4 epochs end after \[1, 1, 4\]: each must add an epoch"):
        replace(WHOLE, rungs=(0.1, 0.2, 1.0))


def test_a_proxy_that_leaves_one_pixel_is_refused() -> None:
    network = load_architecture("efficientnet_b0").replace(classes=10, resolution=32)
    with pytest.raises(EvaluatorError, match="one pixel"):
        replace(WHOLE, fidelity="resolution", rungs=(0.25, 1.0)).check(network)
