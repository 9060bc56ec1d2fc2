"""Batches on the device: stored pixels at the candidate's resolution, random shifts and flips, normalised.

Random numbers are drawn per image on the CPU, so a seed means the same batches on every device.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional as F

from scalesearch.training.data import ImageSet
from scalesearch.training.recipe import Recipe

_CHUNK = 1024


class Images:
    """Some rows of an ImageSet as uint8 [n, 3, resolution, resolution] on a device, in channels-last memory.

    Resized (bilinear, antialiased) once for all epochs if they fit into `budget` bytes, else batch by
    batch; the values are the same.
    """

    def __init__(self, data: ImageSet, rows: NDArray[np.intp], resolution: int, device: torch.device, budget: float) -> None:
        self.resolution, self.device = resolution, device
        self._stored, self._rows = torch.from_numpy(data.images), torch.from_numpy(rows)
        self._held: Tensor | None = None
        self.labels = torch.from_numpy(data.labels[rows]).to(device)
        if 3 * resolution**2 * len(rows) <= budget:
            parts = [self._load(part).permute(0, 2, 3, 1) for part in torch.split(torch.arange(len(rows)), _CHUNK)]
            self._held = torch.cat(parts).contiguous()  # [n, h, w, 3], so that an image is one piece of memory

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: Tensor) -> Tensor:
        """The images at `indices` (int64, on the CPU)."""
        if self._held is None:
            return self._load(indices)
        return self._held.index_select(0, indices.to(self.device)).permute(0, 3, 1, 2)

    def _load(self, indices: Tensor) -> Tensor:
        images = self._stored.index_select(0, self._rows[indices]).to(self.device, non_blocking=True)
        return resize(images.permute(0, 3, 1, 2), self.resolution)


def resize(images: Tensor, resolution: int) -> Tensor:
    """uint8 [n, 3, side, side] at another side, bilinear with antialiasing, rounded to uint8."""
    if images.shape[-1] == resolution:
        return images
    scaled = F.interpolate(images.float(), (resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
    return scaled.round_().clamp_(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def normalise(images: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """uint8 to float32, (x/255 - mean) / deviation per channel."""
    scale = 1 / (255 * deviation)
    return torch.addcmul((-mean / deviation).view(1, 3, 1, 1), images.float(), scale.view(1, 3, 1, 1))


class Draws(NamedTuple):
    """The random numbers of one epoch: the order of the images and, by place in it, shifts in px and flips."""

    order: Tensor
    down: Tensor
    right: Tensor
    flip: Tensor


def draw_epoch(images: int, resolution: int, recipe: Recipe, mirror: bool, generator: Generator) -> Draws:
    """Random numbers for one epoch over so many images."""
    reach = shift_reach(resolution, recipe)
    order = torch.randperm(images, generator=generator)
    down, right = torch.randint(-reach, reach + 1, (2, images), generator=generator)
    coins = torch.randint(0, 2, (images,), generator=generator).bool()
    return Draws(order, down, right, coins & (recipe.flip and mirror))


def shift_reach(resolution: int, recipe: Recipe) -> int:
    """The largest shift in px; a border can be mirrored at most once."""
    return min(round(recipe.crop * resolution), resolution - 1)


def shift_and_flip(images: Tensor, down: Tensor, right: Tensor, flip: Tensor) -> Tensor:
    """Each image [3, side, side] moved by its own whole pixels, borders mirrored, then flipped left to right where asked."""
    if not (down.any() or right.any() or flip.any()):
        return images
    side = images.shape[-1]
    steps = torch.arange(side)
    rows = _mirrored(steps - down[:, None], side)
    columns = _mirrored(steps - right[:, None], side)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    # One gather of whole pixels: [n, side, side] places in the flattened [n·side·side, 3] memory.
    places = (torch.arange(len(images))[:, None, None] * side + rows[:, :, None]) * side + columns[:, None, :]
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3)
    return pixels.index_select(0, places.flatten().to(images.device)).view(-1, side, side, 3).permute(0, 3, 1, 2)


def _mirrored(index: Tensor, side: int) -> Tensor:
    """Indices outside 0 … side - 1 reflected at the border pixel (-1 → 1, side → side - 2)."""
    index = index.abs()
    return side - 1 - (side - 1 - index).abs()
