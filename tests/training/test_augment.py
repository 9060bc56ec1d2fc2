"""Batched resizing, shifts and flips against one image at a time."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator
from torch.nn import functional as F

from scalesearch.training.augment import Images, draw_epoch, normalise, resize, shift_and_flip, shift_reach
from scalesearch.training.data import ImageSet
from scalesearch.training.recipe import Recipe

CPU = torch.device("cpu")


def pixels(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def channels_last(array):
    return torch.from_numpy(array).permute(0, 3, 1, 2)


@pytest.mark.parametrize("side", [5, 8, 16])
def test_shift_and_flip_against_one_image_at_a_time(side):
    images = channels_last(pixels(40, side))
    generator = Generator().manual_seed(1)
    down, right = torch.randint(-side + 1, side, (2, 40), generator=generator)
    flip = torch.randint(0, 2, (40,), generator=generator).bool()
    result = shift_and_flip(images, down, right, flip)
    for i in range(40):
        pad = side - 1
        padded = F.pad(images[i:i + 1].float(), (pad, pad, pad, pad), mode="reflect")[0]
        top, left = pad - down[i], pad - right[i]
        expected = padded[:, top:top + side, left:left + side]
        expected = expected.flip(2) if flip[i] else expected
        assert torch.equal(result[i].float(), expected)
    assert result.is_contiguous(memory_format=torch.channels_last) and result.dtype == torch.uint8


def test_nothing_to_do_returns_the_batch():
    images, zeros = channels_last(pixels(4, 6)), torch.zeros(4, dtype=torch.int64)
    assert shift_and_flip(images, zeros, zeros, zeros.bool()) is images


@pytest.mark.parametrize(("side", "resolution"), [(32, 16), (32, 20), (8, 16), (8, 13)])
def test_resize_agrees_with_pillow(side, resolution):
    array = pixels(6, side)
    ours = resize(channels_last(array), resolution).permute(0, 2, 3, 1).numpy()
    theirs = np.stack([Image.fromarray(a).resize((resolution, resolution), Image.Resampling.BILINEAR) for a in array])
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_same_size_is_left_alone():
    images = channels_last(pixels(2, 8))
    assert resize(images, 8) is images


def test_resized_once_or_in_every_batch_is_the_same():
    data = ImageSet(pixels(50, 12), np.arange(50) % 3)
    rows = np.arange(3, 43)
    held, loaded = Images(data, rows, 9, CPU, budget=1e9), Images(data, rows, 9, CPU, budget=0)
    order = torch.randperm(40, generator=Generator().manual_seed(0))[:17]
    assert torch.equal(held.take(order), loaded.take(order))
    assert held.take(order).is_contiguous(memory_format=torch.channels_last)
    assert held.labels.tolist() == (rows % 3).tolist() and len(held) == 40


def test_normalise_against_the_formula():
    images = channels_last(pixels(3, 4))
    mean, deviation = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    expected = (images.double() / 255 - mean.double().view(1, 3, 1, 1)) / deviation.double().view(1, 3, 1, 1)
    assert torch.allclose(normalise(images, mean, deviation).double(), expected, atol=1e-6)


def test_draws_are_a_permutation_uniform_shifts_and_fair_coins():
    recipe = Recipe(crop=0.125, flip=True)
    draws = draw_epoch(20_000, 16, recipe, True, Generator().manual_seed(0))
    assert sorted(draws.order.tolist()) == list(range(20_000))
    assert shift_reach(16, recipe) == 2
    for shifts in (draws.down, draws.right):
        counts = np.bincount(shifts.numpy() + 2, minlength=5)
        assert ((counts - 4000) ** 2 / 4000).sum() < 18.5  # chi square, 4 degrees of freedom, 0.1 %
    assert abs(draws.flip.float().mean().item() - 0.5) < 3.3 * 0.5 / 20_000**0.5
    assert abs(np.corrcoef(draws.down, draws.right)[0, 1]) < 0.025


def test_no_flips_where_the_data_or_the_recipe_forbids_them():
    for recipe, mirror in ((Recipe(flip=True), False), (Recipe(flip=False), True)):
        assert not draw_epoch(100, 8, recipe, mirror, Generator().manual_seed(0)).flip.any()


def test_shift_never_leaves_a_small_image():
    assert shift_reach(1, Recipe(crop=0.9)) == 0 and shift_reach(4, Recipe(crop=0.99)) == 3
