"""Training a supernet, once for all networks of its space, and what a sub-network needs before it is judged.

A step is a sandwich (arXiv 1903.05134): the largest network learns from the labels, and the smallest
and some random ones from the largest one's outputs on the same images (in-place distillation). Their
gradients add up. All else is the loop's: images, augmentation, schedule, averaging, checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalesearch import stopping
from scalesearch.architecture import Architecture
from scalesearch.cost import cost_of
from scalesearch.errors import ConfigError
from scalesearch.networks.supernet import Supernet, Views, extreme, random_network
from scalesearch.spaces.stages import StageSpace
from scalesearch.training.augment import Batch, Images, normalise
from scalesearch.training.checkpoint import Checkpoint
from scalesearch.training.data import Split
from scalesearch.training.fused import use_cpu_kernels
from scalesearch.training.loop import EpochStats, train
from scalesearch.training.recipe import Recipe
from scalesearch.training.step import TrainingStep, autocast, loss_sum, micro_batches

# Networks drawn to estimate what a step costs; their mean is within a few per cent.
_DRAWS = 64
# Images whose BatchNorm statistics are taken together.
_RECALIBRATION_BATCH = 128


def train_supernet(supernet: Supernet, split: Split, recipe: Recipe, *, resolution: int, random: int = 2, seed: int = 0,
                   device: str | torch.device = "auto", checkpoint: Checkpoint | None = None,
                   stop: Callable[[], bool] = stopping.requested) -> Generator[EpochStats, None, None]:
    """Train in place as `loop.train` does; accuracies and losses are the largest network's.

    random   networks drawn in each step, beside the largest and the smallest

    Stochastic depth takes no part, depth being random already, nor do CUDA graphs and torch.compile,
    for which every network would be another one. One process trains.
    """
    recipe = dataclasses.replace(recipe, graph=False, compile="never")
    return train(supernet, split, recipe, resolution=resolution, macs=functools.partial(step_macs, supernet.space, random), seed=seed,
                 device=device, checkpoint=checkpoint, stop=stop, make_step=functools.partial(SandwichStep, random=random))


class SandwichStep(TrainingStep):
    """A step of a supernet; its loss is the largest network's.

    Networks are drawn from the generator that the loop seeds for every step, so that a training that
    is gone on with draws what the uninterrupted one would have.
    """

    def __init__(self, *context: Any, random: int) -> None:
        super().__init__(*context)
        if self.world.size > 1:
            raise ConfigError("a supernet is trained by one process; start it without torchrun")
        self.supernet, self.random = cast(Supernet, self.model), random
        self.kernels = self.device.type == "cpu" and self.recipe.channels_last

    def backward(self, batch: Batch, parts: int = 1) -> Tensor:
        """Gradients of the sum of all losses, each a mean over the batch, added up over micro-batches."""
        self._zero_gradients()
        largest, *others = self.networks()
        losses = []
        for piece in micro_batches(batch, parts):
            logits = self._logits(largest, piece)
            loss = loss_sum(logits, piece, self.recipe.label_smoothing) / len(batch.labels)
            largest.backward(loss)
            targets = logits.detach().softmax(1)
            for views in others:
                views.backward(F.cross_entropy(self._logits(views, piece), targets, reduction="sum") / len(batch.labels))
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def networks(self) -> Iterator[Views]:
        """The largest network, the smallest, and random ones."""
        space = self.supernet.space
        generator = np.random.default_rng(int(torch.randint(2**62, (), device=self.device)))
        yield self._ready(extreme(space, True, generator), statistics=True)
        yield self._ready(extreme(space, False, generator))
        for _ in range(self.random):
            yield self._ready(random_network(space, generator))

    def _zero_gradients(self) -> None:
        """Blocks that no network of a step has get zeros too: a fused SGD wants gradients for all parameters."""
        for parameter in self.supernet.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.zero_grad(set_to_none=False)

    def _ready(self, architecture: Architecture, statistics: bool = False) -> Views:
        views = self.supernet.views(architecture, statistics)
        if self.kernels:
            use_cpu_kernels(views.network)
        return views

    def _logits(self, views: Views, piece: Batch) -> Tensor:
        with autocast(self.device, self.autocast):
            return cast(Tensor, views.network(piece.inputs)).float()


@functools.lru_cache(maxsize=64)
def step_macs(space: StageSpace, random: int, resolution: int) -> float:
    """Multiply-adds per image of all networks of a step, on average."""
    generator = np.random.default_rng(0)

    def mean(draw: Callable[[], Architecture]) -> float:
        return sum(cost_of(draw().replace(resolution=resolution)).macs for _ in range(_DRAWS)) / _DRAWS

    ends = mean(lambda: extreme(space, True, generator)) + mean(lambda: extreme(space, False, generator))
    return ends + random * mean(lambda: random_network(space, generator))


def recalibrate(model: nn.Module, images: Images, mean: Tensor, deviation: Tensor, bf16: bool = False) -> None:
    """Give every BatchNorm the mean statistics of batches of these images, in their order; the model is left in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
    model.train()
    with torch.inference_mode():
        for rows in torch.split(torch.arange(len(images)), _RECALIBRATION_BATCH):
            if len(rows) > 1:
                with autocast(images.device, bf16):
                    model(normalise(images.take(rows), mean, deviation))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
