"""How a network is trained, as one frozen value, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scalesearch.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """Settings of a training; conf/recipe/*.yaml has named ones.

    epochs             passes over the training images
    batch              images a step; what does not fill a batch waits for the next epoch's shuffle
    optimizer          sgd (Nesterov momentum) · adamw · rmsprop (torch's; it adds eps outside the root,
                       where TensorFlow's has it inside)
    learning_rate      peak for a batch of `rate_batch` images; it scales in proportion to the batch
    rate_batch         0: the learning rate is meant as it stands, whatever the batch
    momentum           of sgd and rmsprop; AdamW's first beta
    weight_decay       on convolution and linear weights only, not on BatchNorm's or biases; L2 in sgd
                       and rmsprop, decoupled in adamw
    warmup             epochs over which the learning rate grows linearly from 0; then cosine to 0
    label_smoothing    share of the target spread over all classes
    ema                decay of the averaged weights that are evaluated; step t takes at most
                       (1 + t)/(10 + t), TensorFlow's num_updates rule. 0: the weights themselves
    crop               random shifts by up to this share of the side, borders mirrored; 0: none
    flip               mirror half of the images, where the data allows it
    dropout            before the classifier
    stochastic_depth   rate at which the last block is skipped; earlier ones less, in proportion
    bn_momentum        weight of a step in BatchNorm's running statistics; 0.01, EfficientNet's, needs
                       thousands of steps
    precision          auto: bf16 on a GPU, fp32 on a CPU
    channels_last      memory layout of the convolutions
    """

    epochs: int = 20
    batch: int = 128
    optimizer: Literal["sgd", "adamw", "rmsprop"] = "sgd"
    learning_rate: float = 0.2
    rate_batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 2.0
    label_smoothing: float = 0.1
    ema: float = 0.99
    crop: float = 0.125
    flip: bool = True
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    bn_momentum: float = 0.1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"recipe.{name}={getattr(self, name)}: it is at least 1")
        if self.batch < 2:
            raise ConfigError("recipe.batch=1: BatchNorm needs at least 2 images")
        if not self.learning_rate > 0:
            raise ConfigError(f"recipe.learning_rate={self.learning_rate}: it is above 0")
        for name in ("rate_batch", "weight_decay", "warmup"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"recipe.{name}={getattr(self, name)}: it is 0 or more")
        for name in ("momentum", "label_smoothing", "ema", "crop", "dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"recipe.{name}={getattr(self, name)}: it lies between 0 and 1")
        if not 0 < self.bn_momentum <= 1:
            raise ConfigError(f"recipe.bn_momentum={self.bn_momentum}: it lies above 0 and is at most 1")


def peak_rate(recipe: Recipe) -> float:
    """The highest learning rate: `learning_rate`, times batch / rate_batch."""
    return recipe.learning_rate * (recipe.batch / recipe.rate_batch if recipe.rate_batch else 1.0)


def lr_at(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of step 0 … steps - 1: a linear warm-up to the peak, then half a cosine to 0.

    >>> recipe = Recipe(epochs=10, warmup=1, learning_rate=0.4, rate_batch=0)
    >>> [round(lr_at(recipe, step, 100), 3) for step in (0, 9, 10, 55, 99)]
    [0.04, 0.4, 0.4, 0.2, 0.0]
    """
    warmup = min(round(steps * recipe.warmup / recipe.epochs), steps)
    if step < warmup:
        return peak_rate(recipe) * (step + 1) / warmup
    return peak_rate(recipe) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def ema_at(recipe: Recipe, step: int) -> float:
    """The decay of the averaged weights at step 0, 1, …: short at first, so that a short training forgets its start."""
    return min(recipe.ema, (1 + step) / (10 + step))
