"""The loop a user would write, as functions for a process of its own.

timm's network, torchvision's transforms on PIL images in a DataLoader, torch's SGD, schedule and
cross-entropy. The network is checked to be ours: it takes our parameters by name and then gives our
logits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image
from timm.models.efficientnet import _gen_efficientnet
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from scalesearch.training.data import DataSettings, Split
from scalesearch.training.recipe import Recipe, lr_at, peak_rate
from sides import ours
from sides.common import noise_split, random_batch, rate, split_of, steady

# Steps before the clock starts: a DataLoader's first batches come late, cuDNN looks for its kernels.
WARM_UP = 10


def prepare(data: DataSettings) -> int:
    """Open the data."""
    return ours.prepare(data)


def training(network: str, resolution: int, recipe: Recipe, data: DataSettings, images: int, validation: int, seed: int, loaders: int,
             mirrored: bool = False) -> dict[str, float]:
    """Accuracy after a whole training on decoded images in memory; when it started and ended, the network being built before."""
    split = split_of(data, images, validation)
    train_set = Decoded(split, split.train, crop(resolution, recipe, mirrored) + to_tensor(*split.statistics))
    validation_set = Decoded(split, split.validation, to_tensor(*split.statistics))
    torch.manual_seed(seed)
    model = model_of(network, resolution, recipe, seed)
    started = time.monotonic()
    source = loader(train_set, recipe.batch, loaders, shuffle=True, drop_last=True)
    held_out = loader(validation_set, 2 * recipe.batch, loaders)
    optimizer, schedule = make_optimizer(model, recipe, recipe.epochs * len(source))
    accuracy = 0.0
    for _ in range(recipe.epochs):
        model.train()
        for inputs, labels in source:
            step(model, optimizer, inputs, labels, recipe)
            schedule.step()
        model.eval()
        with torch.no_grad():
            accuracy = sum((model(inputs).argmax(1) == labels).sum().item() for inputs, labels in held_out) / len(validation_set)
    return {"accuracy": accuracy, "started": started, "ended": time.monotonic()}


def steps(network: str, resolution: int, recipe: Recipe, seconds: float, device: str = "cpu") -> float:
    """Images per second of training steps on one batch."""
    model = model_of(network, resolution, recipe, 0).to(device)
    optimizer, _ = make_optimizer(model, recipe, 1)
    inputs, labels = random_batch(recipe.batch, resolution, device)
    return steady(lambda: step(model, optimizer, inputs, labels, recipe), seconds, device) * recipe.batch


def batches(folder: Path, recipe: Recipe, resolution: int, seconds: float, loaders: int) -> float:
    """Images per second of a DataLoader over a folder of JPEGs, over whole epochs after the first."""
    statistics = to_tensor((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    dataset = ImageFolder(folder, transforms.Compose(crop(resolution, recipe, True) + statistics))
    source = loader(dataset, recipe.batch, loaders, shuffle=True, drop_last=True)

    def epoch() -> int:
        return sum(len(inputs) for inputs, _ in source)

    epoch()
    return rate(epoch, seconds)


def gpu_training(network: str, resolution: int, recipe: Recipe, images: int, folder: Path | None, loaders: int) -> dict[str, float]:
    """Images per second of steps with their data, as many as `images` give; peak of the GPU's memory.

    folder   of JPEGs; None: decoded images in memory
    """
    split = noise_split(images, resolution, 0) if folder is None else noise_split(2, resolution, 0)
    operators = crop(resolution, recipe, False) + to_tensor(*split.statistics)
    dataset = Decoded(split, split.train, operators) if folder is None else ImageFolder(folder, transforms.Compose(operators))
    measured = max(2, images // recipe.batch)
    # With replacement, so that one long epoch measures the loop and not the start of an epoch.
    sampler = RandomSampler(dataset, replacement=True, num_samples=(WARM_UP + measured) * recipe.batch)
    model = model_of(network, resolution, recipe, 0).to("cuda")
    optimizer, schedule = make_optimizer(model, recipe, WARM_UP + measured)
    torch.cuda.reset_peak_memory_stats()
    started = 0.0
    for number, (inputs, labels) in enumerate(loader(dataset, recipe.batch, loaders, sampler=sampler, pin_memory=True)):
        if number == WARM_UP:
            torch.cuda.synchronize()
            started = time.perf_counter()
        step(model, optimizer, inputs.to("cuda", non_blocking=True), labels.to("cuda", non_blocking=True), recipe)
        schedule.step()
    torch.cuda.synchronize()
    return {"rate": measured * recipe.batch / (time.perf_counter() - started), "memory": torch.cuda.max_memory_allocated()}


def gpu_steps(network: str, resolution: int, recipe: Recipe, seconds: float) -> dict[str, float]:
    """`steps` and the peak of the GPU's memory."""
    torch.cuda.reset_peak_memory_stats()
    return {"rate": steps(network, resolution, recipe, seconds, "cuda"), "memory": torch.cuda.max_memory_allocated()}


# ---------------------------------------------------------------------------- what the loop consists of

def model_of(network: str, resolution: int, recipe: Recipe, seed: int) -> nn.Module:
    """timm's network with our initial parameters; on images it computes what ours does."""
    scale = 0.5 if network == "half" else 1.0
    model: nn.Module = _gen_efficientnet("efficientnet_b0", channel_multiplier=scale, depth_multiplier=scale, num_classes=10,
                                         bn_momentum=recipe.bn_momentum, bn_eps=recipe.bn_eps)
    if network == "small":  # stem and stage 2 keep the resolution
        for name in ("conv_stem", "blocks.1.0.conv_dw"):
            model.get_submodule(name).stride = (1, 1)
    mine = ours.model_of(network, resolution, recipe, seed)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in mine.parameters())
    model.load_state_dict(mine.state_dict())
    image = torch.rand(1, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model.eval()(image), mine.eval()(image), atol=1e-4)
    return model.train()


def make_optimizer(model: nn.Module, recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """SGD and schedule with the recipe's numbers; no weight decay on norms and biases, by timm's helper."""
    peak = peak_rate(recipe)
    optimizer = torch.optim.SGD(param_groups_weight_decay(model, recipe.weight_decay), lr=peak, momentum=recipe.momentum, nesterov=True)
    return optimizer, LambdaLR(optimizer, lambda step: lr_at(recipe, min(step, steps - 1), steps) / peak)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, recipe: Recipe) -> None:
    """fp32; on a GPU bf16 by autocast."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=inputs.is_cuda):
        loss = F.cross_entropy(model(inputs), labels, label_smoothing=recipe.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class Decoded:
    """Images in memory, as torchvision's CIFAR10 keeps them: an array that becomes a PIL image when asked for."""

    def __init__(self, split: Split, rows: NDArray[Any], operators: Sequence[Callable[[Any], Any]]) -> None:
        self.images, self.labels = split.data.images[rows], split.data.labels[rows].tolist()
        self.transform = transforms.Compose(operators)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def crop(resolution: int, recipe: Recipe, mirrored: bool) -> list[Callable[[Any], Any]]:
    """The recipe's crop and flip; shifted crops are padded by mirrored borders, as ours, or with black, as most are."""
    flip = transforms.RandomHorizontalFlip()
    if recipe.area < 1:
        return [transforms.RandomResizedCrop(resolution, scale=(recipe.area, 1.0)), flip]
    padding = round(recipe.shift * resolution)
    return [transforms.RandomCrop(resolution, padding=padding, padding_mode="reflect" if mirrored else "constant"), flip]


def to_tensor(mean: Sequence[float], deviation: Sequence[float]) -> list[Callable[[Any], Any]]:
    return [transforms.ToTensor(), transforms.Normalize(mean, deviation)]


def loader(dataset: Any, batch: int, loaders: int, **options: Any) -> DataLoader[Any]:
    """Workers outlive the epoch, which is more than the default grants."""
    return DataLoader(dataset, batch, num_workers=loaders, persistent_workers=loaders > 0, **options)
