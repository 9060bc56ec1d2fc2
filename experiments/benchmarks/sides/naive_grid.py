"""The grid that a user would write: a loop over the coefficients, a whole training for each, files decoded in every epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch.utils.data import Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from scalesearch.architecture import Architecture
from scalesearch.networks.timm_models import register
from scalesearch.training.recipe import Recipe
from sides.plain import loader, make_optimizer, step

# Of the images, kept back for a test, as scalesearch does with a folder that has none.
TEST = 0.2


def train_all(triples: Sequence[Mapping[str, Any]], folder: Path, recipe: Recipe, folds: int, loaders: int,
              statistics: tuple[float, float]) -> dict[str, Any]:
    """Accuracy of every triple's network on every fold, one after the other; `triples` are architectures as mappings.

    `statistics` are mean and deviation of the images, fractions, one for all channels.
    """
    started = time.monotonic()
    normalise = transforms.Normalize(*([value] * 3 for value in statistics))
    accuracies = [[train_one(Architecture.from_mapping(mapping), folder, recipe, fold, folds, loaders, normalise) for fold in range(folds)]
                  for mapping in triples]
    return {"accuracies": accuracies, "seconds": time.monotonic() - started}


def train_one(architecture: Architecture, folder: Path, recipe: Recipe, fold: int, folds: int, loaders: int,
              normalise: torch.nn.Module) -> float:
    """timm's network, torch's loop; the accuracy on the fold held out after the last epoch."""
    torch.manual_seed(fold)
    model: torch.nn.Module = timm.create_model(register(architecture))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = recipe.bn_momentum  # the network's own, 0.01, needs thousands of steps
    side = transforms.Resize((architecture.resolution, architecture.resolution))
    tensor = [transforms.ToTensor(), normalise]
    mirror = [transforms.RandomHorizontalFlip()] if recipe.flip else []
    shown = ImageFolder(folder, transforms.Compose([side, *mirror, *tensor]))
    held_out = ImageFolder(folder, transforms.Compose([side, *tensor]))
    rows = np.random.default_rng(0).permutation(len(shown))[: round((1 - TEST) * len(shown))]
    mine = np.arange(len(rows)) % folds == fold
    source = loader(Subset(shown, rows[~mine].tolist()), recipe.batch, loaders, shuffle=True, drop_last=True)
    validation = loader(Subset(held_out, rows[mine].tolist()), 2 * recipe.batch, loaders)
    optimizer, schedule = make_optimizer(model, recipe, recipe.epochs * len(source))
    right = 0
    for _ in range(recipe.epochs):
        model.train()
        for inputs, labels in source:
            step(model, optimizer, inputs, labels, recipe)
            schedule.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in validation)
    return right / int(mine.sum())
