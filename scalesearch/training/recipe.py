"""How a network is trained, as one frozen value, and everything that changes over a training as a pure function.

    peak_rate, lr_at, ema_at    learning rate and decay of the averaged weights at a step
    plan_at                     image size and strength of the regularisers in an epoch

A setting that grows over the training (progressive learning, EfficientNetV2 section 4) is written as
[first, last]; a plain number stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scalesearch.errors import ConfigError

Ramp = float | tuple[float, float]
"""A number, or (first, last)."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training; conf/recipe/*.yaml has named ones.

    epochs             passes over the training images
    batch              images a step; what does not fill a batch waits for the next epoch's shuffle
    micro_batch        images of a step that go through the network together; None: all of them. Gradients
                       are added up, BatchNorm sees the smaller group. Halved when memory runs out
    optimizer          sgd (Nesterov momentum) · adamw · rmsprop_tf (TensorFlow's form, the papers': eps
                       inside the root, squares start at 1, learning rate inside the momentum) · rmsprop
                       (torch's form)
    learning_rate      peak for a batch of `rate_batch` images; it scales in proportion to the batch
    rate_batch         0: the learning rate is meant as it stands, whatever the batch
    momentum           of sgd and rmsprop; AdamW's first beta
    weight_decay       L2 in sgd and rmsprop, decoupled in adamw
    decay_biases       weight decay also on biases of convolutions and the classifier (v1's code); never
                       on BatchNorm's parameters
    schedule           cosine to 0 · exponential: times `decay` every `decay_epochs`, in steps, counted
                       from the start of the training (the papers') · constant
    warmup             epochs over which the learning rate grows linearly from 0
    label_smoothing    share of the target spread over all classes
    ema                decay of the averaged weights that are evaluated; step t takes at most
                       (1 + t)/(10 + t), TensorFlow's num_updates rule. 0: the weights themselves
    stages             progressive learning: parts of equal length in which size and regularisers stand still
    growth             how a [first, last] is spread over the stages. paper: evenly, both ends included
                       (arXiv 2104.00298, algorithm 1) · released: google/automl's code, the same but for
                       the size, whose stage i of n has first + (last - first)(i + 1)/n
    size               training resolution as a share of the network's own
    shift              random shifts by up to this share of the side, borders mirrored; 0: none
    area               random-resized crops: smallest share of the image that is shown, at aspect ratios
                       of 3/4 to 4/3; 1: none
    flip               mirror half of the images, where the data allows it
    policy             none · randaugment (`policy_layers` random operations of strength `magnitude`) ·
                       autoaugment (ImageNet's policy v0)
    magnitude          strength of RandAugment, on the papers' scale, where 10 is full strength
    mixup, cutmix      parameter alpha of the Beta distribution of the mixing weight; 0: off. With both,
                       half of every batch takes each
    erasing            share of the images from which a random rectangle is erased
    dropout            before the classifier
    stochastic_depth   rate at which the last block is skipped; earlier ones less, in proportion
    sizing             take dropout (v1), or dropout, magnitude and mixup (v2), from the network's
                       multiply-adds, as the published families have them; none: as written here
    sizing_base        multiply-adds of the family's smallest network; None: of the published one's
    initialiser        tensorflow · torchvision · pycls: how weights are drawn
    padding            symmetric · same (TensorFlow's)
    bn_momentum        weight of a step in BatchNorm's running statistics; 0.01, EfficientNet's, needs
                       thousands of steps
    bn_eps             BatchNorm's epsilon
    precision          auto: bf16 on a GPU, fp32 on a CPU
    channels_last      memory layout of the convolutions
    graph              on a GPU, record a training step once and replay it (CUDA graph); falls back and
                       says so where that cannot be done
    compile            torch.compile. auto: only in a training long enough to win back the compilation
    """

    epochs: int = 20
    batch: int = 128
    micro_batch: int | None = None
    optimizer: Literal["sgd", "adamw", "rmsprop_tf", "rmsprop"] = "sgd"
    learning_rate: float = 0.2
    rate_batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_biases: bool = False
    schedule: Literal["cosine", "exponential", "constant"] = "cosine"
    decay: float = 0.97
    decay_epochs: float = 2.4
    warmup: float = 2.0
    label_smoothing: float = 0.1
    ema: float = 0.99
    stages: int = 1
    growth: Literal["paper", "released"] = "paper"
    size: Ramp = 1.0
    shift: float = 0.125
    area: float = 1.0
    flip: bool = True
    policy: Literal["none", "randaugment", "autoaugment"] = "none"
    policy_layers: int = 2
    magnitude: Ramp = 0.0
    mixup: Ramp = 0.0
    cutmix: Ramp = 0.0
    erasing: float = 0.0
    dropout: Ramp = 0.0
    stochastic_depth: float = 0.0
    sizing: Literal["none", "v1", "v2"] = "none"
    sizing_base: float | None = None
    initialiser: Literal["tensorflow", "torchvision", "pycls"] = "tensorflow"
    padding: Literal["symmetric", "same"] = "symmetric"
    bn_momentum: float = 0.1
    bn_eps: float = 1e-3
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    graph: bool = True
    compile: Literal["never", "auto", "always"] = "never"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "stages", "policy_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"recipe.{name}={getattr(self, name)}: it is at least 1")
        if self.batch < 2 or (self.micro_batch is not None and self.micro_batch < 2):
            name = "batch" if self.batch < 2 else "micro_batch"
            raise ConfigError(f"recipe.{name}={getattr(self, name)}: BatchNorm needs at least 2 images")
        for name in ("learning_rate", "decay", "decay_epochs", "bn_eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"recipe.{name}={getattr(self, name)}: it is above 0")
        for name in ("rate_batch", "weight_decay", "warmup", "magnitude", "mixup", "cutmix"):
            if not min(ends(getattr(self, name))) >= 0:
                raise ConfigError(f"recipe.{name}={getattr(self, name)}: it is 0 or more")
        for name in ("momentum", "label_smoothing", "ema", "shift", "dropout", "stochastic_depth"):
            if not 0 <= min(ends(getattr(self, name))) <= max(ends(getattr(self, name))) < 1:
                raise ConfigError(f"recipe.{name}={getattr(self, name)}: it is at least 0 and below 1")
        for name in ("area", "size", "bn_momentum"):
            if not 0 < min(ends(getattr(self, name))) <= max(ends(getattr(self, name))) <= 1:
                raise ConfigError(f"recipe.{name}={getattr(self, name)}: it lies above 0 and is at most 1")
        if self.sizing_base is not None and not self.sizing_base > 0:
            raise ConfigError(f"recipe.sizing_base={self.sizing_base}: it is above 0, the multiply-adds of a network")
        if not 0 <= self.erasing <= 1:
            raise ConfigError(f"recipe.erasing={self.erasing}: it lies between 0 and 1")
        if self.shift and self.area < 1:
            raise ConfigError(f"recipe.shift={self.shift}, recipe.area={self.area}: images are shifted or cropped; set shift=0 or area=1")
        if self.stages > self.epochs:
            raise ConfigError(f"recipe.stages={self.stages}: no more than epochs={self.epochs}; set recipe.epochs={self.stages} or more, "
                              "or fewer stages")
        growing = [name for name in ("size", "magnitude", "mixup", "cutmix", "dropout") if isinstance(getattr(self, name), tuple)]
        if growing and self.stages == 1:
            raise ConfigError(f"recipe.{growing[0]}={getattr(self, growing[0])}: it grows over stages; set recipe.stages=4")


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """What may change between epochs: training resolution in px and the strengths of the regularisers."""

    resolution: int
    magnitude: float
    mixup: float
    cutmix: float
    dropout: float


def plan_at(recipe: Recipe, epoch: int, resolution: int) -> EpochPlan:
    """The plan of epoch 0, 1, … of a network for images of `resolution` px.

    >>> recipe = Recipe(epochs=8, stages=4, size=(0.4, 1.0), dropout=(0.1, 0.4))
    >>> [(plan_at(recipe, e, 300).resolution, round(plan_at(recipe, e, 300).dropout, 3)) for e in (0, 1, 2, 4, 7)]
    [(120, 0.1), (120, 0.1), (180, 0.2), (240, 0.3), (300, 0.4)]
    """
    stage = min(epoch * recipe.stages // recipe.epochs, recipe.stages - 1)
    evenly = stage / (recipe.stages - 1) if recipe.stages > 1 else 1.0
    released = recipe.growth == "released"
    share = between(recipe.size, (stage + 1) / recipe.stages if released else evenly)
    # automl truncates; the epsilon keeps 0.8·300 from becoming 239
    side = int(share * resolution + 1e-6) if released else round(share * resolution)
    return EpochPlan(max(side, 1), between(recipe.magnitude, evenly), between(recipe.mixup, evenly),
                     between(recipe.cutmix, evenly), between(recipe.dropout, evenly))


def ends(value: Ramp) -> tuple[float, float]:
    """(first, last) of a number or a pair."""
    return value if isinstance(value, tuple) else (value, value)


def between(value: Ramp, share: float) -> float:
    """The value at `share` of the way from first to last."""
    first, last = ends(value)
    return first + (last - first) * share


def peak_rate(recipe: Recipe) -> float:
    """The highest learning rate: `learning_rate`, times batch / rate_batch."""
    return recipe.learning_rate * (recipe.batch / recipe.rate_batch if recipe.rate_batch else 1.0)


def lr_at(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of step 0 … steps - 1: a linear warm-up to the peak, then the recipe's schedule.

    >>> recipe = Recipe(epochs=10, warmup=1, learning_rate=0.4, rate_batch=0)
    >>> [round(lr_at(recipe, step, 100), 3) for step in (0, 9, 10, 55, 99)]
    [0.04, 0.4, 0.4, 0.2, 0.0]
    """
    warmup = min(round(steps * recipe.warmup / recipe.epochs), steps)
    if step < warmup:
        return peak_rate(recipe) * (step + 1) / warmup
    if recipe.schedule == "constant":
        return peak_rate(recipe)
    if recipe.schedule == "exponential":
        # In steps and counted from step 0: 5 epochs of warm-up end at 0.97² of the peak, as in tensorflow/tpu.
        return peak_rate(recipe) * recipe.decay ** math.floor(step * recipe.epochs / steps / recipe.decay_epochs + 1e-9)
    return peak_rate(recipe) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def ema_at(recipe: Recipe, step: int) -> float:
    """The decay of the averaged weights at step 0, 1, …: short at first, so that a short training forgets its start."""
    return min(recipe.ema, (1 + step) / (10 + step))
