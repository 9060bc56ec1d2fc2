"""The trainer here, as functions for a process of its own."""

from __future__ import annotations

import gc
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scalesearch.networks.build import Network, build_model
from scalesearch.training.augment import Batch, draw_epoch, training_batches, training_images
from scalesearch.training.data import DataSettings, Split, load_data
from scalesearch.training.devices import CPU_BUDGET, place
from scalesearch.training.distributed import World
from scalesearch.training.loop import EpochStats, train
from scalesearch.training.optimizers import make_optimizer
from scalesearch.training.recipe import Recipe, plan_at
from scalesearch.training.step import TrainingStep
from sides.common import architecture, macs_of, noise_split, random_batch, rate, split_of, steady


def model_of(network: str, resolution: int, recipe: Recipe, seed: int) -> Network:
    return build_model(architecture(network, resolution), dropout=0.0, stochastic_depth=recipe.stochastic_depth, padding=recipe.padding,
                       bn_eps=recipe.bn_eps, bn_momentum=recipe.bn_momentum, seed=seed)


def prepare(data: DataSettings) -> int:
    """Open the data, writing the store where it is not there."""
    return len(load_data(data).data)


def training(network: str, resolution: int, recipe: Recipe, data: DataSettings, images: int, validation: int,
             seed: int) -> dict[str, float]:
    """Accuracy after a whole training; when it started and ended, the network being built before."""
    model, split = model_of(network, resolution, recipe, seed), split_of(data, images, validation)
    started = time.monotonic()
    history = list(train(model, split, recipe, resolution=resolution, macs=macs_of(network), seed=seed, device="cpu"))
    return {"accuracy": history[-1].accuracy, "started": started, "ended": time.monotonic()}


def steps(network: str, resolution: int, recipe: Recipe, seconds: float) -> float:
    """Images per second of training steps on one batch."""
    device = torch.device("cpu")
    model = place(model_of(network, resolution, recipe, 0), recipe, device)
    step = TrainingStep(model, None, make_optimizer(model, recipe), recipe, device, False, World())
    inputs, labels = random_batch(recipe.batch, resolution, "cpu")
    batch = Batch(inputs.contiguous(memory_format=torch.channels_last), labels)
    return steady(lambda: step(batch, 0.01, 0.0), seconds) * recipe.batch


def batches(data: DataSettings, recipe: Recipe, resolution: int, seconds: float) -> float:
    """Images per second of augmented, normalised batches, over whole epochs after the first."""
    dataset = load_data(data)
    rows = np.arange(len(dataset.data), dtype=np.intp)
    split = Split(dataset.data, rows, rows[:1], len(dataset.classes), dataset.mirror)
    mean, deviation = (torch.tensor(values) for values in split.statistics)
    plan, generator = plan_at(recipe, 0, resolution), torch.Generator().manual_seed(0)
    images = training_images(dataset.data, rows, recipe, plan, torch.device("cpu"), CPU_BUDGET)
    places = [slice(i, i + recipe.batch) for i in range(0, len(rows) - recipe.batch + 1, recipe.batch)]

    def epoch() -> int:
        draws = draw_epoch(len(rows), plan, recipe, split.mirror, generator, images.side, images.ratios)
        return sum(len(batch.inputs) for batch in training_batches(images, draws, plan, recipe, mean, deviation, places))

    epoch()
    return rate(epoch, seconds)


def gpu_training(network: str, resolution: int, recipe: Recipe, images: int, stored: int, seed: int = 0) -> dict[str, Any]:
    """A whole training.

    rate             images per second from the second epoch on
    first            seconds of the first epoch
    started, ended   the network being built before
    mode, memory     how steps were computed, peak of the GPU's memory in bytes
    """
    model, split = model_of(network, resolution, recipe, seed), noise_split(images, stored, recipe.batch)
    started = time.monotonic()
    history = list(train(model, split, recipe, resolution=resolution, macs=macs_of(network), seed=seed, device="cuda"))
    first, last = history[0], history[-1]
    return {"rate": (last.images - first.images) / (last.seconds - first.seconds), "first": first.seconds,
            "started": started, "ended": time.monotonic(), "mode": last.mode, "memory": last.memory}


def peak_memory(network: str, resolution: int, recipe: Recipe, device: str) -> float:
    """Bytes that a training of two steps takes at its peak; not those of the libraries and the stored images."""

    def two_steps(network: str, split: Split, resolution: int, batch: int) -> EpochStats:
        short = replace(recipe, batch=batch, epochs=1, warmup=0.0)
        history = train(model_of(network, resolution, short, 0), split, short, resolution=resolution, macs=macs_of(network), device=device)
        return list(history)[-1]

    two_steps("half", noise_split(4, 32, 2), 32, 2)
    split = noise_split(2 * recipe.batch, resolution, recipe.batch)
    gc.collect()
    if device == "cuda":
        return float(two_steps(network, split, resolution, recipe.batch).memory or 0)
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak starts again from here
    before = _resident("VmRSS")
    two_steps(network, split, resolution, recipe.batch)
    return _resident("VmHWM") - before


def _resident(key: str) -> float:
    """VmRSS, resident memory, or VmHWM, its peak, in bytes."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert match is not None
    return 1024.0 * int(match[1])
