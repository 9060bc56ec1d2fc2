"""Random boxes against torchvision's own, cutting out against torchvision and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Generator
from torchvision.transforms import RandomErasing, RandomResizedCrop
from torchvision.transforms.v2 import functional as torchvision

from scalesearch.training.crops import (
    centre_boxes,
    crop_and_resize,
    crop_boxes,
    cut_together,
    erasing_boxes,
    fill,
    inside,
    resize,
)


def pixels(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def channels_last(array):
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def alike(ours, theirs):
    """Whether two samples may come from one distribution, in each column; seeds are fixed, so the answer is too."""
    return all(ks_2samp(a.round(3), b.round(3)).pvalue > 1e-3 for a, b in zip(ours.T, theirs.T, strict=True))


@pytest.mark.parametrize(("height", "width", "smallest"), [(32, 32, 0.08), (32, 32, 0.9), (4000, 6000, 0.08), (8000, 2000, 0.3),
                                                          (4000, 4800, 0.9)])
def test_boxes_are_distributed_as_torchvisions(height, width, smallest):
    """In shares of the picture: our boxes lie in a square into which all of it was squashed."""
    torch.manual_seed(0)
    empty = torch.empty(3, height, width, device="meta")
    theirs = np.array([RandomResizedCrop.get_params(empty, [smallest, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)], float)
    theirs /= [height, width, height, width]
    side = 32 if height == width else 5000  # fine grids of px where the two differ
    boxes = crop_boxes(torch.full((20_000,), width / height), side, smallest, Generator().manual_seed(1))
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all() and (boxes[:, :2] + boxes[:, 2:] <= side).all()
    ours = boxes.numpy() / side
    assert alike(ours, theirs)
    assert alike(ours[:, 2:3] * ours[:, 3:], theirs[:, 2:3] * theirs[:, 3:])  # areas
    assert alike(ours[:, 2:3] / ours[:, 3:], theirs[:, 2:3] / theirs[:, 3:])  # aspect ratios
    assert abs(ours.mean(0) - theirs.mean(0)).max() < 0.02


def test_boxes_that_never_fit_are_the_largest_in_the_centre():
    """As torchvision: a strip of 10:1 has no place for 90 % of its area at 4:3."""
    boxes = crop_boxes(torch.tensor([10.0, 0.1]), 1000, 0.9, Generator().manual_seed(0))
    assert boxes.tolist() == [[0, 433, 1000, 133], [433, 0, 133, 1000]]
    assert RandomResizedCrop.get_params(torch.empty(3, 100, 1000), [0.9, 1.0], [3 / 4, 4 / 3]) == (0, 433, 100, 133)


def test_a_single_pixel_can_be_cropped():
    assert crop_boxes(torch.ones(50), 1, 0.08, Generator().manual_seed(0)).tolist() == [[0, 0, 1, 1]] * 50


@pytest.mark.parametrize("side", [32, 100])
def test_erased_rectangles_are_distributed_as_torchvisions(side):
    torch.manual_seed(0)
    empty = torch.empty(3, side, side, device="meta")
    theirs = np.array([RandomErasing.get_params(empty, (0.02, 1 / 3), (0.3, 3.3), [0.0])[:4] for _ in range(1500)], float)
    boxes = erasing_boxes(20_000, side, 1.0, Generator().manual_seed(1))
    assert (boxes[:, :2] + boxes[:, 2:] <= side).all() and (boxes[:, 2:] < side).all()
    assert alike(boxes.numpy().astype(float), theirs)


def test_as_many_are_erased_as_asked():
    share = (erasing_boxes(20_000, 32, 0.25, Generator().manual_seed(0))[:, 2] > 0).double().mean().item()
    assert abs(share - 0.25) < 3.3 * (0.25 * 0.75 / 20_000) ** 0.5
    assert not erasing_boxes(100, 32, 0.0, Generator().manual_seed(0)).any()


@pytest.mark.parametrize(("side", "resolution"), [(32, 32), (24, 40), (60, 17), (16, 1), (1, 5)])
def test_cutting_out_agrees_with_torchvision(side, resolution):
    images = channels_last(pixels(64, side))
    boxes = crop_boxes(torch.ones(64), side, 0.08, Generator().manual_seed(0))
    boxes[0] = torch.tensor([0, 0, side, side])
    ours = crop_and_resize(images, boxes, resolution)
    for image, box, result in zip(images, boxes.tolist(), ours, strict=True):
        assert torch.equal(result, torchvision.resized_crop(image, *box, [resolution, resolution], antialias=True))
    assert ours.is_contiguous(memory_format=torch.channels_last) and ours.dtype == torch.uint8


@pytest.mark.parametrize(("side", "resolution"), [(32, 32), (24, 40), (60, 17), (96, 64), (1, 5)])
def test_all_at_once_is_within_one_grey_level_of_one_by_one(side, resolution):
    """What a GPU computes."""
    images = channels_last(pixels(64, side))
    boxes = crop_boxes(torch.ones(64), side, 0.08, Generator().manual_seed(0))
    together = cut_together(images, boxes, resolution)
    assert (together.int() - crop_and_resize(images, boxes, resolution).int()).abs().max() <= 1
    assert together.is_contiguous(memory_format=torch.channels_last) and together.dtype == torch.uint8


def test_all_at_once_to_double_precision():
    """Against the formula: a triangle as wide as two outputs, cut off at the box."""
    image, (top, left, height, width), size = pixels(1, 20)[0] / 255.0, (3, 5, 12, 7), 4
    expected = np.zeros((size, size, 3))
    for i in range(size):
        for j in range(size):
            rows = np.maximum(0, 1 - abs(np.arange(height) + 0.5 - (i + 0.5) * height / size) / (height / size))
            columns = np.maximum(0, 1 - abs(np.arange(width) + 0.5 - (j + 0.5) * width / size) / (width / size))
            weights = np.outer(rows / rows.sum(), columns / columns.sum())
            expected[i, j] = (weights[..., None] * image[top:top + height, left:left + width]).sum((0, 1))
    ours = cut_together(channels_last(pixels(1, 20)), torch.tensor([[top, left, height, width]]), size)
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - 255 * expected).max() <= 0.5 + 1e-3


def test_the_central_square():
    """Of 3:2, 1:2 and 1:1, whole content squashed into 120 px."""
    boxes = centre_boxes(torch.tensor([1.5, 0.5, 1.0]), 120)
    assert boxes.tolist() == [[0, 20, 120, 80], [30, 0, 60, 120], [0, 0, 120, 120]]


@pytest.mark.parametrize(("side", "resolution"), [(32, 16), (32, 20), (8, 16), (8, 13)])
def test_resize_agrees_with_pillow(side, resolution):
    array = pixels(6, side)
    ours = resize(channels_last(array), resolution)
    theirs = np.stack([Image.fromarray(a).resize((resolution, resolution), Image.Resampling.BILINEAR) for a in array])
    assert np.abs(ours.permute(0, 2, 3, 1).numpy().astype(int) - theirs.astype(int)).max() <= 1
    assert ours.is_contiguous(memory_format=torch.channels_last) and ours.dtype == torch.uint8


def test_same_size_is_left_alone():
    images = channels_last(pixels(2, 8))
    assert resize(images, 8) is images


def test_filling_boxes():
    boxes = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 5], [0, 0, 8, 8], [7, 7, 1, 1]])
    images = torch.from_numpy(pixels(4, 8))
    expected = images.numpy().copy()
    for image, (top, left, height, width) in zip(expected, boxes.tolist(), strict=True):
        image[top:top + height, left:left + width] = 9
    assert np.array_equal(images.clone().masked_fill_(inside(boxes, 8)[..., None], 9), expected)
    assert np.array_equal(fill(images, boxes, 9), expected)
