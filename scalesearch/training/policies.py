"""RandAugment and AutoAugment on batches: which operations befall which image, and the operations themselves.

Operations, level functions and the sub-policies of AutoAugment are those of EfficientNet's released
code (tensorflow/tpu, models/official/efficientnet/autoaugment.py; google/automl has the same ones),
where magnitude 10 is full strength and more goes beyond it. RandAugment always applies every layer,
as there. Three differences:

- distances are shares of the side: that code's 100 px and 40 px are taken as parts of 224 px
- AutoAugment moves images by at most 150/331 of the side (arXiv 1805.09501, table 6); the code's
  250 px would move them out of sight
- contrast turns around the image's mean brightness, as in PIL, where that code takes a number that
  depends on the image's size instead

Every operation agrees with PIL's ImageOps, ImageEnhance and nearest-neighbour transforms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from scalesearch.training.crops import fill, send

OPERATIONS = ("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness",
              "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd")
NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
Operation = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
FILL = 128  # what comes in from outside of an image, and what a cutout leaves

_SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
_RAND_SHIFT, _AUTO_SHIFT, _CUTOUT = 100 / 224, 150 / 331, 40 / 224

# (operation, probability, magnitude) of both steps of each sub-policy: policy_v0 of the released code.
AUTOAUGMENT = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)


class Steps(NamedTuple):
    """What a policy does to n images in k steps.

    operations   [n, k] int64, numbers of OPERATIONS, -1: nothing
    arguments    [n, k] float64: degrees, bits, thresholds, factors, shares of the side; signs are in
    centres      [n, k, 2] float64 in [0, 1): the middle of a cutout, (down, across)
    """

    operations: Tensor
    arguments: Tensor
    centres: Tensor


def argument_of(operation: str, magnitude: float, shift: float = _RAND_SHIFT) -> float:
    """The argument of an operation at a magnitude; `shift` is the translation at magnitude 10.

    >>> [argument_of("Rotate", 10), argument_of("Posterize", 8), argument_of("Color", 5), argument_of("Solarize", 7.5)]
    [30.0, 3, 1.0, 192]
    """
    level = magnitude / 10
    match operation:
        case "Rotate":
            return 30 * level
        case "Posterize":
            return min(int(4 * level), 8)  # bits that are kept, so less is more
        case "Solarize":
            return min(int(256 * level), 256)
        case "SolarizeAdd":
            return int(110 * level)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return 1.8 * level + 0.1
        case "ShearX" | "ShearY":
            return 0.3 * level
        case "TranslateX" | "TranslateY":
            return shift * level
        case "Cutout":
            return _CUTOUT * level
    return 0.0


def draw_randaugment(count: int, layers: int, magnitude: float, generator: Generator) -> Steps:
    """`layers` operations for each image, each any of OPERATIONS, at one magnitude."""
    operations = torch.randint(0, len(OPERATIONS), (count, layers), generator=generator)
    table = torch.tensor([argument_of(name, magnitude) for name in OPERATIONS], dtype=torch.float64)
    return _with_signs(operations, table[operations], generator)


def draw_autoaugment(count: int, generator: Generator) -> Steps:
    """One of the 25 sub-policies for each image; each of its two steps happens with its probability."""
    chosen = torch.randint(0, len(AUTOAUGMENT), (count,), generator=generator)
    numbers = torch.tensor([[NUMBER[name] for name, _, _ in pair] for pair in AUTOAUGMENT])
    chances = torch.tensor([[chance for _, chance, _ in pair] for pair in AUTOAUGMENT])
    arguments = torch.tensor([[argument_of(name, level, _AUTO_SHIFT) for name, _, level in pair] for pair in AUTOAUGMENT],
                             dtype=torch.float64)
    happens = torch.rand(count, 2, generator=generator) < chances[chosen]
    return _with_signs(torch.where(happens, numbers[chosen], -1), arguments[chosen], generator)


def apply_steps(images: Tensor, steps: Steps) -> Tensor:
    """The steps one after the other on uint8 [n, 3, side, side] in channels-last memory.

    `steps` lie on the CPU, whatever device the images are on, so that nothing has to be read back.
    """
    pixels = images.permute(0, 2, 3, 1)
    for operations, arguments, centres in zip(*(values.unbind(1) for values in steps), strict=True):
        pixels = _apply_step(pixels, operations, arguments, centres)
    return pixels.permute(0, 3, 1, 2)


def _apply_step(pixels: Tensor, operations: Tensor, arguments: Tensor, centres: Tensor) -> Tensor:
    """One operation for each image: they are sorted by kind, each kind is done at once, and the sorting is undone."""
    kinds = _KIND[operations]  # -1, nothing, is the last one
    order = kinds.argsort(stable=True)
    counts = kinds.bincount(minlength=len(_KINDS) + 1).tolist()
    there, back = send(torch.stack([order, order.argsort()]), pixels.device)
    parts, first = [], 0
    for operation, count in zip((*_KINDS, None), counts, strict=True):
        if count:
            part, which = pixels.index_select(0, there[first:first + count]), order[first:first + count]
            parts.append(part if operation is None else operation(part, operations[which], arguments[which], centres[which]))
        first += count
    return torch.cat(parts).index_select(0, back)


# ---------------------------------------------------------------------------- operations on [n, side, side, 3]

def transform(pixels: Tensor, operations: Tensor, arguments: Tensor, centres: Tensor) -> Tensor:
    """Rotations (degrees, counter-clockwise), shears (slope) and translations (share of the side): nearest pixel, FILL outside.

    In PIL's fixed-point numbers of 1/65536 px, so that every device takes the same pixels.
    """
    count, side = pixels.shape[:2]
    maps = send(_fixed_point(operations, arguments, side), pixels.device)
    steps = torch.arange(side, dtype=torch.int32, device=pixels.device)
    across, down = ((row[:, 0, None, None] * steps + row[:, 1, None, None] * steps[:, None] + row[:, 2, None, None]) >> 16
                    for row in maps.unbind(1))
    inside = (across >= 0) & (across < side) & (down >= 0) & (down < side)
    first = torch.arange(count, dtype=torch.int32, device=pixels.device)[:, None, None] * side
    places = torch.where(inside, (down + first).mul_(side).add_(across), count * side * side)  # the last one is FILL
    padded = torch.cat([pixels.flatten(0, 2), torch.full((1, 3), FILL, dtype=torch.uint8, device=pixels.device)])
    return padded.index_select(0, places.flatten()).view(pixels.shape)


def look_up(pixels: Tensor, operations: Tensor, arguments: Tensor, centres: Tensor) -> Tensor:
    """Operations that send a value to another one, whatever the image."""
    return _through(pixels, send(_fixed_tables(operations, arguments), pixels.device)[:, :, None].expand(-1, -1, 3))


def contrast(pixels: Tensor, operations: Tensor, arguments: Tensor, centres: Tensor) -> Tensor:
    """Away from the image's mean brightness (factor above 1) or towards it."""
    mean = (_grey(pixels).double().mean((1, 2)) + 0.5).floor().float()[:, None, None]
    values = torch.arange(256, dtype=torch.float32, device=pixels.device).view(1, 256, 1)
    return _through(pixels, _blend(mean, values, send(arguments, pixels.device)).expand(-1, -1, 3))


def autocontrast(pixels: Tensor, operations: Tensor, arguments: Tensor, centres: Tensor) -> Tensor:
    """Each channel stretched to 0 … 255; one of a single value stays."""
    flat = pixels.flatten(1, 2)
    low, high = (extreme.double()[:, None] for extreme in (flat.amin(1), flat.amax(1)))
    values = torch.arange(256, dtype=torch.float64, device=pixels.device).view(1, 256, 1)
    # As PIL computes it, so that the fractions that are cut off are the same; 255 / x would be a reciprocal times 255.
    scale = torch.full_like(high, 255) / (high - low).clamp(min=1)
    stretched = (values * scale - low * scale).clamp(0, 255)
    return _through(pixels, torch.where(high > low, stretched, values).to(torch.uint8))


def equalise(pixels: Tensor, operations: Tensor, arguments: Tensor, centres: Tensor) -> Tensor:
    """Each channel's values spread so that all become as frequent as one another."""
    counts = _histograms(pixels)
    values = torch.arange(256, device=pixels.device).view(1, 256, 1)
    highest = (values * (counts > 0)).amax(1, keepdim=True)
    step = (counts.sum(1, keepdim=True) - counts.gather(1, highest)) // 255
    below = counts.cumsum(1) - counts
    spread = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return _through(pixels, torch.where(step > 0, spread, values).to(torch.uint8))


def colour(pixels: Tensor, operations: Tensor, arguments: Tensor, centres: Tensor) -> Tensor:
    """Away from grey (factor above 1) or towards it."""
    return _blend(_grey(pixels)[..., None].float(), pixels.float(), send(arguments, pixels.device))


def sharpen(pixels: Tensor, operations: Tensor, arguments: Tensor, centres: Tensor) -> Tensor:
    """Away from the smoothed image (factor above 1) or towards it; its outermost pixels stay."""
    values = pixels.short()
    across = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    weighted = across[:, :-2] + across[:, 1:-1] + across[:, 2:] + 4 * values[:, 1:-1, 1:-1]  # 1, 1, 1; 1, 5, 1; 1, 1, 1
    smooth = pixels.float()
    smooth[:, 1:-1, 1:-1] = (weighted.float() / 13).round_()
    return _blend(smooth, pixels.float(), send(arguments, pixels.device))


def cut_out(pixels: Tensor, operations: Tensor, arguments: Tensor, centres: Tensor) -> Tensor:
    """A square of FILL; half its side is the argument, and what sticks out of the image is lost."""
    side = pixels.shape[1]
    reach = (arguments * side).long()[:, None]
    first, last = (((centres * side).long() + step).clamp(0, side) for step in (-reach, reach))
    boxes = torch.cat([first, last - first], 1)
    return fill(pixels, send(boxes, pixels.device), FILL)


# Kinds of operations that are done at once.
_KINDS: dict[Operation, tuple[str, ...]] = {
    transform: _SIGNED, look_up: ("Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness"), contrast: ("Contrast",),
    autocontrast: ("AutoContrast",), equalise: ("Equalize",), colour: ("Color",), sharpen: ("Sharpness",), cut_out: ("Cutout",)}
# The kind of each operation; that of -1, nothing, is the last entry.
_KIND = torch.tensor([next(i for i, names in enumerate(_KINDS.values()) if name in names) for name in OPERATIONS] + [len(_KINDS)])


# ---------------------------------------------------------------------------- details

def _with_signs(operations: Tensor, arguments: Tensor, generator: Generator) -> Steps:
    signed = torch.isin(operations, torch.tensor([NUMBER[name] for name in _SIGNED]))
    negative = torch.rand(operations.shape, generator=generator) < 0.5
    centres = torch.rand(*operations.shape, 2, generator=generator, dtype=torch.float64)
    return Steps(operations, torch.where(signed & negative, -arguments, arguments), centres)


def _fixed_point(operations: Tensor, arguments: Tensor, side: int) -> Tensor:
    """From a pixel to where it comes from, int32 [n, 2, 3]: (column, row), each a·column + b·row + c in 1/65536 px.

    The half added to c makes it the middle of the pixel.
    """
    maps = []
    for number, value in zip(operations.tolist(), arguments.tolist(), strict=True):
        rows = _affine(OPERATIONS[number], value, side)
        maps.append([[math.floor(x * 65536 + 0.5) for x in (a, b, c + a / 2 + b / 2)] for a, b, c in rows])
    return torch.tensor(maps, dtype=torch.int32)


def _affine(operation: str, value: float, side: int) -> Sequence[tuple[float, float, float]]:
    match operation:
        case "ShearX":
            return (1, value, 0), (0, 1, 0)
        case "ShearY":
            return (1, 0, 0), (value, 1, 0)
        case "TranslateX":
            return (1, 0, value * side), (0, 1, 0)
        case "TranslateY":
            return (1, 0, 0), (0, 1, value * side)
    cosine, sine, centre = math.cos(math.radians(-value)), math.sin(math.radians(-value)), side / 2
    return (cosine, sine, centre - centre * (cosine + sine)), (-sine, cosine, centre + centre * (sine - cosine))


def _through(pixels: Tensor, tables: Tensor) -> Tensor:
    """The pixels' values looked up in the table of their image and channel, uint8 [n, 256, 3]."""
    return tables.flatten().index_select(0, _entries(pixels)).view(pixels.shape)


def _entries(pixels: Tensor) -> Tensor:
    """The place of each value in tables [n, 256, 3], int32, flat."""
    first = torch.arange(len(pixels), dtype=torch.int32, device=pixels.device).view(-1, 1, 1) * (256 * 3)
    channel = torch.arange(3, dtype=torch.int32, device=pixels.device).repeat(pixels.shape[2])
    return pixels.flatten(2).int().mul_(3).add_(channel).add_(first).flatten()


def _fixed_tables(operations: Tensor, arguments: Tensor) -> Tensor:
    """Tables of the operations that do not look at the image, uint8 [n, 256]; zeros for the rest."""
    values, argument = torch.arange(256), arguments[:, None]
    whole = argument.long()
    choices = {"Invert": 255 - values.expand(len(operations), 256),
               "Posterize": values & (0xFF << (8 - whole.clamp(0, 8))),
               "Solarize": torch.where(values < whole, values, 255 - values),
               "SolarizeAdd": torch.where(values < 128, (values + whole).clamp(max=255), values),
               "Brightness": (argument.float() * values).clamp(max=255).long()}
    tables = torch.zeros(len(operations), 256, dtype=torch.int64)
    for name, table in choices.items():
        tables = torch.where(operations[:, None] == NUMBER[name], table, tables)
    return tables.to(torch.uint8)


def _histograms(pixels: Tensor) -> Tensor:
    """How often each value occurs, int64 [n, 256, 3]."""
    entries, size = _entries(pixels), len(pixels) * 256 * 3
    if pixels.device.type == "cpu":
        return entries.bincount(minlength=size).view(-1, 256, 3)
    counts = torch.zeros(size, dtype=torch.int64, device=pixels.device)  # bincount would wait for the GPU
    return counts.index_add_(0, entries, torch.ones_like(entries, dtype=torch.int64)).view(-1, 256, 3)


def _grey(pixels: Tensor) -> Tensor:
    """Brightness as PIL's convert("L") rounds it, int32 [n, side, side]."""
    red, green, blue = pixels.int().unbind(-1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _blend(base: Tensor, values: Tensor, factors: Tensor) -> Tensor:
    """base + factor·(values - base), cut off below 0 and above 255 and truncated, as PIL's blend."""
    factors = factors.float().view(-1, *[1] * (base.ndim - 1))
    return (values - base).mul_(factors).add_(base).clamp_(0, 255).to(torch.uint8)
