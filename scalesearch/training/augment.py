"""Batches on the device: stored pixels at the epoch's resolution, augmented image by image, normalised.

    cut out or shifted, flipped · RandAugment or AutoAugment · normalised · erased · mixed in pairs

Every random number of an epoch is drawn beforehand on the CPU and belongs to a place in the epoch's
order. So a seed means the same images on every device, wherever in the epoch one begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from scalesearch.training.crops import centre_boxes, crop_and_resize, crop_boxes, cut_each, erasing_boxes, resize, send
from scalesearch.training.data import ImageSet
from scalesearch.training.mixing import cutmix_boxes, erase, mix, mixup_shares
from scalesearch.training.policies import Steps, apply_steps, draw_autoaugment, draw_randaugment
from scalesearch.training.recipe import EpochPlan, Recipe

_CHUNK = 1024
_AHEAD = 2


class Images:
    """Some rows of an ImageSet as uint8 [n, 3, resolution, resolution] on a device, in channels-last memory.

    Resized (bilinear, antialiased) once for all epochs if they fit into `budget` bytes, else batch by
    batch; the values are the same. resolution=None: all that is stored, at its own side, to cut crops
    from; else the central square of pictures whose whole content was stored. A CPU holds nothing that
    is as it is stored: the memory map serves all processes.

    side     of the stored images in px
    ratios   width/height of each picture, float32 [n], where their whole content is stored
    held     whether they lie on the device, so that a batch needs nothing from the store
    """

    def __init__(self, data: ImageSet, rows: NDArray[np.intp], resolution: int | None, device: torch.device, budget: float) -> None:
        self.side = int(data.images.shape[1])
        self.resolution, self.device = resolution or self.side, device
        self.ratios = None if data.ratios is None else torch.from_numpy(data.ratios[rows])
        self.labels = torch.from_numpy(data.labels[rows]).to(device)
        self._stored, self._rows = torch.from_numpy(data.images), torch.from_numpy(rows)
        self._centres = None if self.ratios is None or resolution is None else centre_boxes(self.ratios, self.side)
        self._held: Tensor | None = None
        as_stored = self.resolution == self.side and self._centres is None
        if 3 * self.resolution**2 * len(rows) <= budget and not (as_stored and device.type == "cpu"):
            parts = [self.take(part).permute(0, 2, 3, 1) for part in torch.split(torch.arange(len(rows)), _CHUNK)]
            self._held = torch.cat(parts).contiguous()  # [n, h, w, 3], so that an image is one piece of memory

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def held(self) -> bool:
        return self._held is not None

    def take(self, indices: Tensor) -> Tensor:
        """A copy of the images at `indices` (int64, on the CPU; on the device if they are held)."""
        if self._held is not None:
            return self._held.index_select(0, send(indices, self.device)).permute(0, 3, 1, 2)
        return self.place(self.read(indices), indices)

    def crop(self, indices: Tensor, boxes: Tensor, resolution: int) -> Tensor:
        """Boxes [b, 4] of the images at `indices`, at another resolution."""
        if self._held is None and self.device.type == "cpu":
            return cut_each(self._stored, self._rows[indices].tolist(), boxes, resolution)
        return crop_and_resize(self.take(indices), boxes, resolution)

    def read(self, indices: Tensor, out: Tensor | None = None) -> Tensor:
        """Stored pixels, uint8 [b, side, side, 3] on the CPU."""
        return torch.index_select(self._stored, 0, self._rows[indices], out=out)

    def place(self, pixels: Tensor, indices: Tensor) -> Tensor:
        """Stored pixels of the images at `indices`, on the device and at the resolution."""
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        if self._centres is not None:
            return crop_and_resize(images, self._centres[indices], self.resolution)
        return resize(images, self.resolution)


class Draws(NamedTuple):
    """The random numbers of one epoch: the order of the images and, by place in it, what happens to each; None: nothing.

    A box is top, left, height and width in px, int64 [n, 4]. order, down and right are int64 [n].

    order          numbers of the images
    down, right    shifts in px
    flip           whether it is mirrored, bool [n]
    crop           box in the stored image
    policy         steps of RandAugment or AutoAugment
    erase          box that is erased; none is 0 px high
    mixup          share of the image in its mixture, float32 [n]
    cutmix         box that comes from its partner
    """

    order: Tensor
    down: Tensor | None = None
    right: Tensor | None = None
    flip: Tensor | None = None
    crop: Tensor | None = None
    policy: Steps | None = None
    erase: Tensor | None = None
    mixup: Tensor | None = None
    cutmix: Tensor | None = None

    def at(self, places: slice) -> Draws:
        """Those of some places."""
        policy = self.policy and Steps(*(values[places] for values in self.policy))
        return self._each(lambda values: values[places], policy)

    def to(self, device: torch.device) -> Draws:
        """The same on a device, but for the policy's, from which lists of images are made on the CPU."""
        return self._each(lambda values: send(values, device), self.policy)

    def _each(self, change: Callable[[Tensor], Tensor], policy: Steps | None) -> Draws:
        def changed(values: Tensor | None) -> Tensor | None:
            return None if values is None else change(values)

        return Draws(change(self.order), changed(self.down), changed(self.right), changed(self.flip), changed(self.crop), policy,
                     changed(self.erase), changed(self.mixup), changed(self.cutmix))


class Batch(NamedTuple):
    """One step's images.

    inputs      [b, 3, r, r] float32, normalised, in channels-last memory
    labels      [b] int64
    partners    labels of the images mixed in, [b] int64; None without mixing
    weights     share of `labels` in the mixture, [b] float32; None without mixing
    """

    inputs: Tensor
    labels: Tensor
    partners: Tensor | None = None
    weights: Tensor | None = None


def draw_epoch(images: int, plan: EpochPlan, recipe: Recipe, mirror: bool, generator: Generator, side: int | None = None,
               ratios: Tensor | None = None) -> Draws:
    """Random numbers for one epoch over so many images.

    mirror         whether a mirrored image keeps its class
    side, ratios   of the Images; random-resized crops need the side
    """
    resolution, reach = plan.resolution, shift_reach(plan.resolution, recipe)
    order = torch.randperm(images, generator=generator)
    down, right = torch.randint(-reach, reach + 1, (2, images), generator=generator)
    coins = torch.randint(0, 2, (images,), generator=generator).bool()
    ratios = torch.ones(images) if ratios is None else ratios[order]
    return Draws(
        order, down if reach else None, right if reach else None, coins if recipe.flip and mirror else None,
        crop=None if recipe.area == 1 else crop_boxes(ratios, _known(side), recipe.area, generator),
        policy=_draw_policy(images, plan, recipe, generator),
        erase=erasing_boxes(images, resolution, recipe.erasing, generator) if recipe.erasing else None,
        mixup=mixup_shares(plan.mixup, images, generator) if plan.mixup else None,
        cutmix=cutmix_boxes(plan.cutmix, images, resolution, generator) if plan.cutmix else None)


def training_images(data: ImageSet, rows: NDArray[np.intp], recipe: Recipe, plan: EpochPlan, device: torch.device,
                    budget: float) -> Images:
    """The images of an epoch: at its resolution, or as stored where crops are cut from them."""
    return Images(data, rows, plan.resolution if recipe.area == 1 else None, device, budget)


def training_batches(images: Images, draws: Draws, plan: EpochPlan, recipe: Recipe, mean: Tensor, deviation: Tensor,
                     places: Sequence[slice], ahead: bool | None = None) -> Iterator[Batch]:
    """One batch for each slice of places in the epoch's order; images are mixed within their slice.

    ahead   read the store in a thread, two batches ahead; None: on a GPU that does not hold the images
    """
    there = draws.to(images.device)
    if ahead is None:
        ahead = images.device.type == "cuda" and not images.held
    taken = _taken_ahead(images, draws, there, plan, places) if ahead else _taken(images, draws, there, plan, places)
    for place, pixels in zip(places, taken, strict=True):
        yield augmented(pixels, images.labels, there.at(place), shift_reach(plan.resolution, recipe), mean, deviation)


def augmented(images: Tensor, labels: Tensor, draws: Draws, reach: int, mean: Tensor, deviation: Tensor) -> Batch:
    """uint8 [b, 3, r, r] in channels-last memory as `draws` of the batch say; `labels` are those of all images."""
    if draws.down is not None or draws.flip is not None:
        images = shift_and_flip(images, draws.down, draws.right, draws.flip, reach)
    if draws.policy is not None:
        images = apply_steps(images, draws.policy)
    inputs, own = normalise(images, mean, deviation), labels[draws.order]
    if draws.erase is not None:
        inputs = erase(inputs, draws.erase)
    if draws.mixup is None and draws.cutmix is None:
        return Batch(inputs, own)
    mixed, partners, weights = mix(inputs, own, draws.mixup, draws.cutmix)
    return Batch(mixed, own, partners, weights)


def shift_reach(resolution: int, recipe: Recipe) -> int:
    """The largest shift in px; a border can be mirrored at most once."""
    return min(round(recipe.shift * resolution), resolution - 1)


def shift_and_flip(images: Tensor, down: Tensor | None, right: Tensor | None, flip: Tensor | None, reach: int) -> Tensor:
    """Each image [3, side, side] moved by its own whole pixels, borders mirrored, then flipped left to right where asked.

    down, right   int64 [n], at most `reach` either way; None: not moved · flip   bool [n]; None: none
    """
    count, side = len(images), images.shape[-1]
    pixels, mirrored = images.permute(0, 2, 3, 1), images.flip(3).permute(0, 2, 3, 1)
    # A mirrored border is the mirrored image read on, and the flipped image lies a side further: along such lines every
    # shift and flip is `side` pixels in a row, so that one gather of whole rows does it all, many times as fast as one of pixels.
    lines = torch.cat([mirrored[:, :, side - 1 - reach:side - 1], pixels, mirrored[:, :, 1:], pixels[:, :, 1:reach + 1]], 2)
    length = lines.shape[2]
    stretches = lines.view(-1).as_strided((count * side * length - side + 1, side * 3), (3, 1))
    rows = torch.arange(side, device=images.device).expand(count, side) if down is None else _mirrored(
        torch.arange(side, device=images.device) - down[:, None], side)
    first = (torch.arange(count, device=images.device)[:, None] * side + rows) * length + reach
    moved = torch.zeros_like(first[:, :1]) if right is None else -right[:, None]
    if flip is not None:
        moved = torch.where(flip[:, None], side - 1 - moved, moved)
    return stretches.index_select(0, (first + moved).flatten()).view(count, side, side, 3).permute(0, 3, 1, 2)


def normalise(images: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """uint8 to float32, (x/255 - mean) / deviation per channel."""
    # A row of an image at a time: over three channels at a time it takes five times as long.
    rows = images.permute(0, 2, 3, 1).float().flatten(2)
    scale, offset = (1 / (255 * deviation)).repeat(images.shape[3]), (-mean / deviation).repeat(images.shape[3])
    return torch.addcmul(offset, rows, scale, out=rows).view(*images.shape[:1], *images.shape[2:], 3).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------- details

def _known(side: int | None) -> int:
    assert side is not None, "random-resized crops are drawn in stored px: pass images.side"
    return side


def _draw_policy(images: int, plan: EpochPlan, recipe: Recipe, generator: Generator) -> Steps | None:
    if recipe.policy == "randaugment":
        return draw_randaugment(images, recipe.policy_layers, plan.magnitude, generator)
    return draw_autoaugment(images, generator) if recipe.policy == "autoaugment" else None


def _taken(images: Images, draws: Draws, there: Draws, plan: EpochPlan, places: Sequence[slice]) -> Iterator[Tensor]:
    """uint8 images at the plan's resolution, cut out where crops are drawn; without waiting for a GPU that holds them."""
    order = there.order if images.held else draws.order
    for place in places:
        if there.crop is None:
            yield images.take(order[place])
        else:
            yield images.crop(order[place], there.crop[place], plan.resolution)


def _taken_ahead(images: Images, draws: Draws, there: Draws, plan: EpochPlan, places: Sequence[slice]) -> Iterator[Tensor]:
    """The same, read in a thread. It makes no call to the GPU, so that a CUDA graph may be recorded meanwhile."""
    waiting: deque[tuple[slice, Future[Tensor]]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def finish() -> Tensor:
        place, reading = waiting.popleft()
        pixels = images.place(reading.result(), draws.order[place])
        return pixels if there.crop is None else crop_and_resize(pixels, there.crop[place], plan.resolution)

    try:
        for place in places:
            indices = draws.order[place]
            buffer = torch.empty(len(indices), images.side, images.side, 3, dtype=torch.uint8, pin_memory=images.device.type == "cuda")
            waiting.append((place, pool.submit(images.read, indices, buffer)))
            if len(waiting) > _AHEAD:
                yield finish()
        while waiting:
            yield finish()
    finally:
        pool.shutdown(cancel_futures=True)


def _mirrored(index: Tensor, side: int) -> Tensor:
    """Indices outside 0 … side - 1 reflected at the border pixel (-1 → 1, side → side - 2)."""
    index = index.abs()
    return side - 1 - (side - 1 - index).abs()
