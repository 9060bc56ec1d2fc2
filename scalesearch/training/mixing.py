"""Mixing pairs of images and their labels, and erasing rectangles, on normalised batches.

Mixup (arXiv 1710.09412), cutmix (arXiv 1905.04899) and who takes which as in EfficientNetV2's released
code (google/automl, efficientnetv2/datasets.py): the partner is the image at the mirrored place of the
batch; the larger share of a mixup stays with the image itself; with both on, the first half of the
batch is mixed up and the second half cut.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from scalesearch.training.crops import fill, inside


def draw_beta(alpha: float, count: int, generator: Generator) -> Tensor:
    """Values of Beta(alpha, alpha), float64 [n].

    As a ratio of two Gamma values in logarithms: for a small alpha both would round to zero.
    """
    gammas = torch._standard_gamma(torch.full((2, count), alpha + 1, dtype=torch.float64), generator)
    uniform = 1 - torch.rand(2, count, generator=generator, dtype=torch.float64)
    first, second = gammas.log() + uniform.log() / alpha  # Gamma(a) is Gamma(a + 1)·U^(1/a)
    return torch.sigmoid(first - second)


def mixup_shares(alpha: float, count: int, generator: Generator) -> Tensor:
    """The share of each image in its mixture, float32 [n] in [0.5, 1]."""
    share = draw_beta(alpha, count, generator)
    return torch.maximum(share, 1 - share).float()


def cutmix_boxes(alpha: float, count: int, side: int, generator: Generator) -> Tensor:
    """The box that each image takes from its partner, int64 [n, 4]: top, left, height, width.

    A square whose side is that of the image times the root of 1 - Beta(alpha, alpha), around a pixel
    anywhere, cut off at the image's border.
    """
    reach = ((1 - draw_beta(alpha, count, generator)).sqrt() * side).long() // 2
    middle = torch.randint(0, side, (2, count), generator=generator)
    top, left = (middle - reach).clamp(min=0)
    bottom, right = (middle + reach).clamp(max=side)
    return torch.stack([top, left, bottom - top, right - left], 1)


def mix(inputs: Tensor, labels: Tensor, shares: Tensor | None, boxes: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mixtures of float32 [b, 3, r, r] in channels-last memory, their partners' labels and the share of their own, [b].

    shares   of mixup, [b]; boxes   of cutmix, [b, 4]; with both, each is used for its half of the batch.
    """
    half = len(inputs) if boxes is None else 0 if shares is None else len(inputs) // 2
    pixels, kept = inputs.permute(0, 2, 3, 1), torch.ones(len(inputs), device=inputs.device)
    places = torch.arange(len(inputs), device=inputs.device)
    partners = torch.cat([places[:half].flip(0), places[half:].flip(0)])
    mixed = pixels.index_select(0, torch.cat([partners[:half], places[half:]]))
    if shares is not None:
        kept[:half] = shares[:half]
        mixed[:half].flatten(1).lerp_(pixels[:half].flatten(1), shares[:half, None])
    if boxes is not None:
        kept[half:] = 1 - (boxes[half:, 2] * boxes[half:, 3]).float() / inputs.shape[-1] ** 2
        _paste(mixed[half:], pixels[half:], boxes[half:])
    return mixed.permute(0, 3, 1, 2), labels[partners], kept


def erase(inputs: Tensor, boxes: Tensor) -> Tensor:
    """Zeros, which is the mean colour after normalisation, inside the boxes; `inputs` are written over."""
    return fill(inputs.permute(0, 2, 3, 1), boxes, 0.0).permute(0, 3, 1, 2)


def _paste(target: Tensor, source: Tensor, boxes: Tensor) -> None:
    """Into each image of `target` [n, r, r, 3], the box of the one at the mirrored place of `source`."""
    if target.device.type != "cpu":
        torch.where(inside(boxes, target.shape[1])[..., None], source.flip(0), target, out=target)
        return
    for image, (top, left, height, width), place in zip(target, boxes.tolist(), reversed(range(len(source))), strict=True):
        image[top:top + height, left:left + width] = source[place, top:top + height, left:left + width]
