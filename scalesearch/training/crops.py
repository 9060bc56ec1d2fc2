"""Boxes drawn as torchvision draws them, and cutting them out of a batch at another size.

A box is four whole numbers: top, left, height and width in px. Where the whole content of a picture
was squashed into a square, its width/height is given as `ratios`, and areas and aspect ratios are
those of the picture, not of the square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

_TRIES = 10
# Images cut out together on a GPU, which bounds the memory in between.
_CHUNK = 256


def crop_boxes(ratios: Tensor, side: int, smallest: float, generator: Generator) -> Tensor:
    """Random-resized crops as torchvision.transforms.RandomResizedCrop draws them, int64 [n, 4].

    Area uniform in [smallest, 1], the logarithm of width/height uniform between 3/4 and 4/3; after ten
    boxes that do not fit, the largest one in the centre whose aspect ratio is allowed.

    ratios   width/height of the pictures [n], float; 1 where they are squares
    """
    height, width = side / ratios.double().sqrt(), side * ratios.double().sqrt()
    sizes = _fitting(height, width, side, (smallest, 1.0), (3 / 4, 4 / 3), generator)
    aspect = ratios.double().clamp(3 / 4, 4 / 3)
    widest = torch.stack([(width / aspect).clamp(max=height) / height, (height * aspect).clamp(max=width) / width], 1)
    largest = (widest * side).round().long().clamp(min=1)
    missed = sizes[:, 0] == 0
    corners = _corners(sizes, side, generator)
    centred = (side - largest) // 2
    return torch.cat([torch.where(missed[:, None], centred, corners), torch.where(missed[:, None], largest, sizes)], 1)


def erasing_boxes(count: int, side: int, probability: float, generator: Generator) -> Tensor:
    """Rectangles to erase as torchvision.transforms.RandomErasing draws them, int64 [n, 4]; none is 0 px high.

    Area uniform in 2 % to 1/3, the logarithm of height/width uniform between 0.3 and 3.3.
    """
    sides = torch.full((count,), float(side), dtype=torch.float64)
    # Its aspect ratio is height/width, and a rectangle as high or wide as the picture does not count as fitting.
    sizes = _fitting(sides, sides, side - 1, (0.02, 1 / 3), (1 / 3.3, 1 / 0.3), generator)
    corners = _corners(sizes, side, generator)
    erased = torch.rand(count, generator=generator) < probability
    return torch.cat([corners, sizes], 1) * erased[:, None]


def centre_boxes(ratios: Tensor, side: int) -> Tensor:
    """The central square of each picture, int64 [n, 4]."""
    short = torch.stack([ratios.double().clamp(max=1), 1 / ratios.double().clamp(min=1)], 1)
    sizes = (short * side).round().long().clamp(min=1)
    return torch.cat([(side - sizes) // 2, sizes], 1)


def crop_and_resize(images: Tensor, boxes: Tensor, resolution: int) -> Tensor:
    """The boxes of uint8 [n, 3, side, side] at resolution x resolution: bilinear, antialiased, uint8, channels-last.

    On a CPU image by image through torch's integer kernel; on a GPU all at once, to within one grey level of it.
    """
    if images.device.type == "cpu":
        return cut_each(images.permute(0, 2, 3, 1), range(len(images)), boxes, resolution)
    parts = zip(torch.split(images, _CHUNK), torch.split(send(boxes, images.device), _CHUNK), strict=True)
    return torch.cat([cut_together(part, box, resolution) for part, box in parts])


def cut_each(pixels: Tensor, rows: Sequence[int], boxes: Tensor, resolution: int) -> Tensor:
    """Boxes of the images at `rows` of uint8 [m, side, side, 3] on the CPU; only the pixels inside them are read."""
    array = pixels.numpy()  # cut in numpy and without F.interpolate, whose own time is that of scaling a small image
    size, parts = [resolution, resolution], []
    for row, (top, left, height, width) in zip(rows, boxes.tolist(), strict=True):
        cut = np.ascontiguousarray(array[row:row + 1, top:top + height, left:left + width])
        parts.append(torch._C._nn._upsample_bilinear2d_aa(torch.from_numpy(cut).permute(0, 3, 1, 2), size, False, None))
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def cut_together(images: Tensor, boxes: Tensor, resolution: int) -> Tensor:
    """The same as two products with a matrix for each image, one along rows and one along columns."""
    side = images.shape[-1]
    down = _weights(boxes[:, 0], boxes[:, 2], side, resolution)
    across = _weights(boxes[:, 1], boxes[:, 3], side, resolution)
    pixels = images.permute(0, 2, 3, 1).float()
    rows = torch.bmm(down, pixels.reshape(-1, side, side * 3)).view(-1, resolution, side, 3)
    result = across[:, None] @ rows
    return result.round_().clamp_(0, 255).to(torch.uint8).permute(0, 3, 1, 2)


def resize(images: Tensor, resolution: int) -> Tensor:
    """uint8 [n, 3, side, side] at another side, bilinear with antialiasing, rounded to uint8, channels-last."""
    if images.shape[-1] == resolution:
        return images
    return _scaled(images, resolution).contiguous(memory_format=torch.channels_last)


def fill(pixels: Tensor, boxes: Tensor, value: float) -> Tensor:
    """`value` inside the box of each image [n, side, side, 3], in place."""
    if pixels.device.type != "cpu":
        return pixels.masked_fill_(inside(boxes, pixels.shape[1])[..., None], value)
    for image, (top, left, height, width) in zip(pixels, boxes.tolist(), strict=True):
        if height and width:
            image[top:top + height, left:left + width] = value
    return pixels


def inside(boxes: Tensor, side: int) -> Tensor:
    """True within the boxes, bool [n, side, side]."""
    steps = torch.arange(side, device=boxes.device)
    top, left, height, width = boxes[:, :, None].unbind(1)
    rows = (steps >= top) & (steps < top + height)
    columns = (steps >= left) & (steps < left + width)
    return rows[:, :, None] & columns[:, None, :]


def send(values: Tensor, device: torch.device) -> Tensor:
    """A small tensor on `device`; a GPU is not waited for."""
    if device.type == "cpu" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _scaled(images: Tensor, resolution: int) -> Tensor:
    if images.device.type == "cpu":  # a kernel for uint8, many times as fast as the one for floats
        return F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=True)
    return F.interpolate(images.float(), (resolution, resolution), mode="bilinear", antialias=True).round_().clamp_(0, 255).to(torch.uint8)


def _weights(start: Tensor, length: Tensor, side: int, resolution: int) -> Tensor:
    """What each of `resolution` outputs takes from each of `side` inputs: a triangle as wide as two outputs, and
    at least two inputs, cut off at the box; float32 [n, resolution, side], rows add up to 1."""
    start, length = start[:, None, None].float(), length[:, None, None].float()
    scale = length / resolution
    centre = start + scale * (torch.arange(resolution, device=start.device)[:, None] + 0.5)
    place = torch.arange(side, device=start.device) + 0.5
    weights = (1 - (place - centre).abs() / scale.clamp(min=1)).clamp_(min=0)
    weights = weights * ((place > start) & (place < start + length))
    return weights / weights.sum(2, keepdim=True)


def _fitting(height: Tensor, width: Tensor, side: int, areas: tuple[float, float], aspects: tuple[float, float],
             generator: Generator) -> Tensor:
    """Height and width in stored px of the first of ten random boxes that is at most `side` px either way; 0, 0 for none.

    height, width   of the pictures, in units in which the stored square has their area
    """
    sizes = torch.zeros(len(height), 2, dtype=torch.int64)
    missing = torch.arange(len(height))
    full = (height * width).sqrt()
    for _ in range(_TRIES):
        area, aspect = torch.rand(2, len(missing), generator=generator, dtype=torch.float64)
        area = full[missing] ** 2 * (areas[0] + (areas[1] - areas[0]) * area)
        aspect = torch.exp(math.log(aspects[0]) + (math.log(aspects[1]) - math.log(aspects[0])) * aspect)
        tried = torch.stack([(area / aspect).sqrt() * full[missing] / height[missing],
                             (area * aspect).sqrt() * full[missing] / width[missing]], 1).round().long()
        fits = ((tried > 0) & (tried <= side)).all(1)
        sizes[missing[fits]] = tried[fits]
        missing = missing[~fits]
    return sizes


def _corners(sizes: Tensor, side: int, generator: Generator) -> Tensor:
    """Uniform among the places that keep the box inside."""
    places = torch.rand(sizes.shape, generator=generator, dtype=torch.float64)
    return (places * (side + 1 - sizes)).long()
