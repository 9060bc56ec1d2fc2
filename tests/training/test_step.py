"""The step: micro-batches add up to the batch, memory that runs out halves them, mixed labels weigh in, averages average."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scalesearch.training.augment import Batch
from scalesearch.training.distributed import World
from scalesearch.training.optimizers import make_optimizer
from scalesearch.training.recipe import Recipe
from scalesearch.training.step import Average, TrainingStep, is_out_of_memory, loss_sum, use_tensor_rate

RECIPE = Recipe(batch=32, learning_rate=0.1, rate_batch=0, graph=False)


def network(norm=False):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.SiLU(), nn.Flatten(),
                         nn.Linear(128, 10))


def batch(images=32, mixed=False):
    generator = torch.Generator().manual_seed(1)
    labels, partners = torch.randint(0, 10, (2, images), generator=generator)
    weights = torch.rand(images, generator=generator)
    return Batch(torch.randn(images, 3, 8, 8, generator=generator), labels, *((partners, weights) if mixed else ()))


def make_step(model, recipe=RECIPE, averaged=None):
    return TrainingStep(model, averaged, make_optimizer(model, recipe), recipe, torch.device("cpu"), False, World())


@pytest.mark.parametrize("micro_batch", [16, 11, 3, 2])
def test_micro_batches_make_the_same_step(micro_batch):
    whole, parts = network(), network()
    data = batch(mixed=True)
    losses = [make_step(whole)(data, 0.1, 0.0), make_step(parts, Recipe(batch=32, micro_batch=micro_batch, graph=False))(data, 0.1, 0.0)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_batch_norm_sees_the_micro_batch():
    whole, parts = network(norm=True), network(norm=True)
    make_step(whole)(batch(), 0.1, 0.0)
    make_step(parts, Recipe(batch=32, micro_batch=8, graph=False))(batch(), 0.1, 0.0)
    assert whole[1].num_batches_tracked == 1 and parts[1].num_batches_tracked == 4


class Small(nn.Module):
    """A network in a memory that holds so many images."""

    def __init__(self, model, images):
        super().__init__()
        self.model, self.images, self.sizes = model, images, []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.images:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return self.model(x)


def test_memory_that_runs_out_halves_the_micro_batch_and_the_step_is_the_same(caplog):
    whole, small = network(), Small(network(), 10)
    step = make_step(small)
    with caplog.at_level(logging.WARNING):
        loss = step(batch(), 0.1, 0.0)
    assert loss.item() == pytest.approx(make_step(whole)(batch(), 0.1, 0.0).item(), rel=1e-6)
    assert small.sizes == [32, 16, 8, 8, 8, 8] and step.micro_batch == 8
    assert "micro-batches of 8 images" in caplog.text
    for one, other in zip(whole.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    step(batch(), 0.1, 0.0)
    assert small.sizes[6:] == [8, 8, 8, 8]  # it is remembered


def test_it_gives_up_below_eight_images():
    small = Small(network(), 4)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        make_step(small)(batch(), 0.1, 0.0)
    assert min(small.sizes) == 8


def test_other_errors_are_not_taken_for_lack_of_memory():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        make_step(nn.Sequential(Broken(), nn.Linear(1, 1)))(batch(), 0.1, 0.0)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


def test_the_loss_of_mixed_images_is_that_of_mixed_targets():
    logits, data, smoothing = torch.randn(32, 10), batch(mixed=True), 0.1
    targets = F.one_hot(data.labels, 10) * data.weights[:, None] + F.one_hot(data.partners, 10) * (1 - data.weights[:, None])
    targets = targets * (1 - smoothing) + smoothing / 10
    expected = -(targets * F.log_softmax(logits, 1)).sum()
    assert loss_sum(logits, data, smoothing).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_average(as_tensor):
    model, averaged = network(norm=True), network(norm=True)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    before = copy.deepcopy(averaged.state_dict())
    Average(averaged, model)(torch.tensor(0.9) if as_tensor else 0.9)
    for name, value in averaged.state_dict().items():
        expected = before[name] + 0.1 if value.is_floating_point() else before[name] + 1
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop_tf", "rmsprop"])
def test_a_rate_in_a_tensor_makes_the_same_steps(optimizer):
    recipe = Recipe(batch=32, optimizer=optimizer, graph=False)
    plain, tensor = network(), network()
    steps = make_step(plain, recipe), make_step(tensor, recipe)
    use_tensor_rate(steps[1].optimizer, torch.device("cpu"))
    for rate in (0.1, 0.05, 0.2):
        for step in steps:
            step(batch(), rate, 0.0)
    for one, other in zip(plain.parameters(), tensor.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop_tf", "rmsprop"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_recorded_step_is_the_ordinary_one(optimizer, mixed):
    def trained(graph):
        recipe = Recipe(batch=32, optimizer=optimizer, learning_rate=0.01, graph=graph)
        model = network(norm=True).cuda()
        averaged = copy.deepcopy(model)
        step = TrainingStep(model, averaged, make_optimizer(model, recipe), recipe, torch.device("cuda", 0), False, World())
        losses = []
        for number in range(12):
            data = Batch(*(None if v is None else v.cuda() for v in batch(32 if number < 8 else 16, mixed)))
            losses.append(step(data, 0.01 / (1 + number), 0.5).item())
        return losses, step.mode, [*model.state_dict().values(), *averaged.state_dict().values()]

    (plain, mode, state), (recorded, mode_recorded, state_recorded) = trained(False), trained(True)
    assert mode == "eager" and mode_recorded == "cuda graph"
    assert recorded == pytest.approx(plain, rel=1e-3)
    for one, other in zip(state, state_recorded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
