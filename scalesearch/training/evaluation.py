"""Accuracy and loss of a network on images, without augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalesearch.training.augment import Images, normalise
from scalesearch.training.data import ImageSet, Split
from scalesearch.training.devices import memory_budget, place, torch_device, wants_bf16
from scalesearch.training.distributed import World
from scalesearch.training.recipe import Recipe
from scalesearch.training.step import autocast, is_out_of_memory

# Images looked at together in evaluation; on a CPU more than these leave its cache and take twice as long.
_EVALUATION_BATCH = {"cpu": 128, "cuda": 512}

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of the channels, of pixels in [0, 1]."""


def evaluate(model: nn.Module, images: Images, mean: Tensor, deviation: Tensor, bf16: bool = False,
             world: World = World(), between: Callable[[], None] = lambda: None) -> tuple[float, float]:  # noqa: B008 (frozen)
    """Accuracy and mean cross-entropy over all images, each process looking at its share; the model is left in evaluation mode.

    `between` is called after every batch.
    """
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=images.device)  # right answers, loss
    left, batch = torch.arange(world.rank, len(images), world.size), _EVALUATION_BATCH.get(images.device.type, 512)
    with torch.inference_mode():
        while len(left):
            rows = left[:batch]
            try:
                with autocast(images.device, bf16):
                    logits = model(normalise(images.take(rows), mean, deviation)).float()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or batch == 1:
                    raise
                batch //= 2  # the images of a batch do not look at each other here
                continue
            labels = images.labels[rows.to(images.device)]
            sums[0] += (logits.argmax(1) == labels).sum()
            sums[1] += F.cross_entropy(logits, labels, reduction="sum")
            left = left[len(rows):]
            between()
    correct, loss = (world.total(sums) / len(images)).tolist()
    return correct, loss


def evaluate_on(model: nn.Module, data: ImageSet, split: Split, recipe: Recipe, *, resolution: int,
                device: str | torch.device = "auto", statistics: Statistics | None = None) -> tuple[float, float]:
    """Accuracy and loss of a trained model on other images, normalised as in its training."""
    device = torch_device(device)
    images = Images(data, np.arange(len(data), dtype=np.intp), resolution, device, memory_budget(device))
    mean, deviation = statistics_on(statistics or split.statistics, device)
    return evaluate(place(model, recipe, device), images, mean, deviation, wants_bf16(recipe, device))


def statistics_on(statistics: Statistics, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation as tensors on the device."""
    mean, deviation = statistics
    return torch.tensor(mean, device=device), torch.tensor(deviation, device=device)
