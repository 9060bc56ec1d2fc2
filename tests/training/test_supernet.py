"""Training a supernet: the gradients of a sandwich step, going on after a stop, costs, and recalibration."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scalesearch import stopping
from scalesearch.architecture import Architecture, Head, Stage, Stem
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.networks.build import build_model
from scalesearch.networks.supernet import Supernet, extreme
from scalesearch.spaces.stages import StageSpace, mbconv, stage_options
from scalesearch.training import supernet as training
from scalesearch.training.augment import Batch, Images
from scalesearch.training.checkpoint import Checkpoint
from scalesearch.training.data import ImageSet, Split
from scalesearch.training.distributed import World
from scalesearch.training.recipe import Recipe
from scalesearch.training.supernet import SandwichStep, recalibrate, step_macs, train_supernet

SKELETON = Architecture(Stem(8), (Stage("mbconv", 3, 8, 1), Stage("mbconv", 3, 16, 2, stride=2, expansion=6)), Head(16), 3, 8)
RECIPE = Recipe(epochs=3, batch=16, learning_rate=0.1, warmup=1, shift=0.0, flip=False, bn_momentum=0.2, ema=0.9)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def space():
    return mbconv(SKELETON)


def sliced_only():
    """A space whose networks are all slices of the largest, which a few steps can train."""
    first, second = SKELETON.stages
    return StageSpace("slices", SKELETON, [stage_options(functools.partial(dataclasses.replace, first), kernel=(3, 5)),
                                           stage_options(functools.partial(dataclasses.replace, second), kernel=(3, 5), expansion=(4, 6),
                                                         layers=(1, 2), se_ratio=(0.0, 0.25))])


@pytest.fixture(scope="module")
def split():
    """Three classes of noise around one colour each."""
    generator = np.random.default_rng(0)
    labels = np.arange(64) % 3
    pixels = 60 + 60 * np.eye(3)[labels][:, None, None, :] + generator.normal(0, 20, (64, 8, 8, 3))
    data = ImageSet(pixels.clip(0, 255).astype(np.uint8), labels.astype(np.int64))
    return Split(data, np.arange(48), np.arange(48, 64), 3)


def trained(space, split, recipe=RECIPE, **how):
    supernet = Supernet(space, bn_momentum=recipe.bn_momentum, seed=0)
    return supernet, list(train_supernet(supernet, split, recipe, resolution=8, device="cpu", **how))


def test_a_step_adds_up_labels_for_the_largest_and_its_outputs_for_the_others(space, monkeypatch):
    supernet = Supernet(space, seed=0).double()
    x, labels = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    recipe = dataclasses.replace(RECIPE, label_smoothing=0.1, channels_last=False)
    step = SandwichStep(supernet, None, torch.optim.SGD(supernet.parameters(), 0.1), recipe, CPU, False, World(), random=2)
    drawn = list(step.networks())
    monkeypatch.setattr(step, "networks", lambda: iter(drawn))
    own = [[(view.shared, view.part) for view in views.views] for views in drawn]

    # The same from copies: every network cut out, trained by itself, its gradients put where its weights came from.
    expected = {id(parameter): torch.zeros_like(parameter) for parameter in supernet.parameters()}
    teacher, losses = None, []
    for views, places in zip(drawn, own, strict=True):
        copy = supernet.cut(views.network.architecture).train()
        outputs = copy(x)
        loss = F.cross_entropy(outputs, labels, label_smoothing=0.1) if teacher is None else F.cross_entropy(outputs, teacher)
        teacher = outputs.detach().softmax(1) if teacher is None else teacher
        losses.append(loss.detach())
        names = {id(parameter): name for name, parameter in views.network.named_parameters()}
        copies = dict(copy.named_parameters())
        loss.backward()
        for view, (shared, index) in zip(views.views, places, strict=True):
            expected[id(shared)][index] += copies[names[id(view.own)]].grad
    assert float(step.backward(Batch(x, labels))) == pytest.approx(float(losses[0]), rel=1e-5)
    for parameter in supernet.parameters():
        torch.testing.assert_close(parameter.grad, expected[id(parameter)], rtol=1e-4, atol=1e-6)  # losses are float32
    assert drawn[0].network.architecture == extreme(space, True) and drawn[1].network.architecture == extreme(space, False)


def test_micro_batches_have_the_losses_of_the_batch(space):
    recipe = dataclasses.replace(RECIPE, label_smoothing=0.0)
    losses = []
    for parts in (1, 2):
        supernet = Supernet(space, seed=0).eval()  # without the statistics of a batch its parts have nothing in common
        step = SandwichStep(supernet, None, torch.optim.SGD(supernet.parameters(), 0.1), recipe, CPU, False, World(), random=1)
        torch.manual_seed(0)
        losses.append(step.backward(Batch(torch.randn(8, 3, 8, 8), torch.arange(8) % 3), parts))
        losses.append(next(supernet.parameters()).grad.clone())
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses[1], losses[3], rtol=1e-3, atol=1e-5)


def test_it_learns_for_networks_that_are_not_the_ends(split):
    space = sliced_only()
    supernet, history = trained(space, split, dataclasses.replace(RECIPE, epochs=10))
    assert history[-1].loss < 0.7 < 1.0 < history[0].train_loss
    images = Images(split.data, split.train, 8, CPU, 1e9)
    mean, deviation = (torch.tensor(values) for values in split.statistics)
    pixels = (torch.from_numpy(split.data.images).permute(0, 3, 1, 2) / 255 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    network = supernet.network(space.decode({**space.encode(extreme(space, True)), "stage2.expansion": 4, "stage2.kernel": 3,
                                             "stage2.se_ratio": 0.0}))
    recalibrate(network, images, mean, deviation)
    with torch.inference_mode():
        right = (network(pixels).argmax(1) == torch.from_numpy(split.data.labels)).float().mean()
    assert right > 0.8  # chance is a third


def test_a_stopped_training_goes_on_as_if_it_had_not_been(space, split, tmp_path):
    whole, history = trained(space, split)
    checkpoint, asked = Checkpoint(tmp_path / "checkpoint.pt"), []

    def stop():
        asked.append(None)
        return len(asked) == 5  # in the middle of the second epoch of three steps each

    with pytest.raises(stopping.Terminated):
        trained(space, split, checkpoint=checkpoint, stop=stop)
    assert checkpoint.path.is_file()
    again, resumed = trained(space, split, checkpoint=checkpoint)
    assert [dataclasses.replace(stats, seconds=0) for stats in resumed] == [dataclasses.replace(stats, seconds=0) for stats in history]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_another_seed_draws_other_networks(space, split):
    one = dataclasses.replace(RECIPE, epochs=1)
    (first, _), (same, _), (other, _) = (trained(space, split, one, seed=seed) for seed in (0, 0, 1))
    name = "bank.stage2_2_mbconv_plain.conv_dw.weight"
    assert torch.equal(first.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_the_cost_of_a_step(space, split):
    ends = cost_of(extreme(space, True)).macs + cost_of(extreme(space, False)).macs
    assert step_macs(space, 0, 8) == ends
    between = step_macs(space, 1, 8) - ends
    assert cost_of(extreme(space, False)).macs < between < cost_of(extreme(space, True)).macs
    assert step_macs(space, 3, 8) - ends == pytest.approx(3 * between, rel=0.2)
    _, history = trained(space, split, dataclasses.replace(RECIPE, epochs=1), random=0)
    assert history[0].training_macs == 3 * ends * 48


def test_what_cannot_be_recorded_is_computed_step_by_step(space, split, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "train", lambda model, split, recipe, **how: seen.append(recipe) or iter(()))
    trained(space, split, dataclasses.replace(RECIPE, compile="always", graph=True))
    assert (seen[0].compile, seen[0].graph) == ("never", False)


def test_one_process_trains(space):
    supernet = Supernet(space, seed=0)
    with pytest.raises(ConfigError, match="trained by one process"):
        SandwichStep(supernet, None, torch.optim.SGD(supernet.parameters(), 0.1), RECIPE, CPU, False, OtherWorld(), random=1)


class OtherWorld(World):
    """Of two processes, without starting them."""

    def __init__(self):
        super().__init__(0, 2)

    def wrap(self, model, device):
        return model


def test_recalibration_takes_the_mean_over_batches(split, monkeypatch):
    monkeypatch.setattr(training, "_RECALIBRATION_BATCH", 16)
    model = build_model(SKELETON, seed=0)
    images, (mean, deviation) = Images(split.data, split.train[:40], 8, CPU, 1e9), (torch.zeros(3), torch.ones(3))
    with torch.no_grad():
        batches = [model.conv_stem(torch.from_numpy(split.data.images[rows]).permute(0, 3, 1, 2) / 255)
                   for rows in (np.arange(16), np.arange(16, 32), np.arange(32, 40))]
    for _ in range(2):  # what it had before does not matter
        recalibrate(model, images, mean, deviation)
        torch.testing.assert_close(model.bn1.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
        torch.testing.assert_close(model.bn1.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert not model.training and {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}
