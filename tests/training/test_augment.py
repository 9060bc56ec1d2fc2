"""Batches against one image at a time, and that a seed means the same ones however they are asked for."""

import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as torchvision

from scalesearch.training.augment import (
    Images,
    draw_epoch,
    normalise,
    shift_and_flip,
    shift_reach,
    training_batches,
    training_images,
)
from scalesearch.training.data import ImageSet
from scalesearch.training.policies import Steps, apply_steps
from scalesearch.training.recipe import Recipe, plan_at

CPU = torch.device("cpu")
MEAN, DEVIATION = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
EVERYTHING = Recipe(shift=0.0, area=0.2, flip=True, policy="randaugment", magnitude=8.5, erasing=0.5, mixup=0.4, cutmix=1.0)
RECIPES = {
    "nothing": Recipe(shift=0.0, flip=False),
    "shift and flip": Recipe(shift=0.25, flip=True),
    "shift": Recipe(shift=0.25, flip=False),
    "crop": Recipe(shift=0.0, area=0.3, flip=False),
    "autoaugment": Recipe(policy="autoaugment"),
    "everything": EVERYTHING,
}


def pixels(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def channels_last(array):
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def batches(data, recipe, resolution, places, *, seed=3, budget=1e9, device=CPU, mirror=True, **how):
    """Batches of one epoch over all images but the first two."""
    plan = plan_at(recipe, 0, resolution)
    images = training_images(data, np.arange(2, len(data)), recipe, plan, device, budget)
    draws = draw_epoch(len(images), plan, recipe, mirror, Generator().manual_seed(seed), images.side, images.ratios)
    return list(training_batches(images, draws, plan, recipe, MEAN.to(device), DEVIATION.to(device), places, **how))


def same(ours, theirs):
    return all(a is b if a is None else torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# ---------------------------------------------------------------------------- the parts

@pytest.mark.parametrize(("side", "reach"), [(5, 4), (8, 7), (16, 3), (16, 0), (1, 0)])
def test_shift_and_flip_against_one_image_at_a_time(side, reach):
    images = channels_last(pixels(40, side))
    generator = Generator().manual_seed(1)
    down, right = torch.randint(-reach, reach + 1, (2, 40), generator=generator)
    flip = torch.randint(0, 2, (40,), generator=generator).bool()
    result = shift_and_flip(images, down, right, flip, reach)
    for i in range(40):
        pad = side - 1
        padded = F.pad(images[i:i + 1].float(), (pad, pad, pad, pad), mode="reflect")[0]
        top, left = pad - down[i], pad - right[i]
        expected = padded[:, top:top + side, left:left + side]
        expected = expected.flip(2) if flip[i] else expected
        assert torch.equal(result[i].float(), expected)
    assert result.is_contiguous(memory_format=torch.channels_last) and result.dtype == torch.uint8
    zeros = torch.zeros_like(down)
    assert torch.equal(shift_and_flip(images, down, right, None, reach), shift_and_flip(images, down, right, zeros.bool(), reach))
    assert torch.equal(shift_and_flip(images, None, None, flip, 0), torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images))


def test_resized_once_or_in_every_batch_is_the_same():
    data = ImageSet(pixels(50, 12), np.arange(50) % 3)
    rows = np.arange(3, 43)
    held, loaded = Images(data, rows, 9, CPU, budget=1e9), Images(data, rows, 9, CPU, budget=0)
    assert held.held and not loaded.held
    order = torch.randperm(40, generator=Generator().manual_seed(0))[:17]
    assert torch.equal(held.take(order), loaded.take(order))
    assert held.take(order).is_contiguous(memory_format=torch.channels_last)
    assert held.labels.tolist() == (rows % 3).tolist() and len(held) == 40


def test_stored_pixels_are_not_copied_to_be_held_on_a_cpu():
    """The memory map serves all processes; and what is taken may be written over."""
    array = pixels(20, 12)
    images = Images(ImageSet(array, np.arange(20) % 3), np.arange(5, 20), 12, CPU, budget=1e9)
    taken = images.take(torch.tensor([4, 0]))
    assert not images.held and np.array_equal(taken.permute(0, 2, 3, 1).numpy(), array[[9, 5]])
    taken.zero_()
    assert array[[9, 5]].any()


@pytest.mark.parametrize("budget", [1e9, 0])
def test_evaluation_sees_the_central_square_of_each_picture(budget):
    """Pictures of 3:1, 2:3 and 1:1 whose whole content was squashed into 60 px, against Pillow's scaling of a part."""
    array, ratios = pixels(3, 60), np.array([3.0, 2 / 3, 1.0], np.float32)
    images = Images(ImageSet(array, np.arange(3), ratios), np.arange(3), 16, CPU, budget)
    boxes = [(20, 0, 40, 60), (0, 10, 60, 50), (0, 0, 60, 60)]  # left, top, right, bottom of the squares
    theirs = np.stack([Image.fromarray(image).crop(box).resize((16, 16), Image.Resampling.BILINEAR)
                       for image, box in zip(array, boxes, strict=True)])
    ours = images.take(torch.arange(3)).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    assert np.array_equal(images.ratios.numpy(), ratios)


def test_normalise_against_the_formula():
    images = channels_last(pixels(3, 4))
    expected = (images.double() / 255 - MEAN.double().view(1, 3, 1, 1)) / DEVIATION.double().view(1, 3, 1, 1)
    ours = normalise(images, MEAN, DEVIATION)
    assert torch.allclose(ours.double(), expected, atol=1e-6) and ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------- the random numbers

def test_draws_are_a_permutation_uniform_shifts_and_fair_coins():
    recipe = Recipe(shift=0.125, flip=True)
    draws = draw_epoch(20_000, plan_at(recipe, 0, 16), recipe, True, Generator().manual_seed(0))
    assert sorted(draws.order.tolist()) == list(range(20_000))
    assert shift_reach(16, recipe) == 2
    for shifts in (draws.down, draws.right):
        counts = np.bincount(shifts.numpy() + 2, minlength=5)
        assert ((counts - 4000) ** 2 / 4000).sum() < 18.5  # chi square, 4 degrees of freedom, 0.1 %
    assert abs(draws.flip.float().mean().item() - 0.5) < 3.3 * 0.5 / 20_000**0.5
    assert abs(np.corrcoef(draws.down, draws.right)[0, 1]) < 0.025


def test_what_a_recipe_does_not_ask_for_is_not_drawn():
    for recipe, mirror in ((Recipe(shift=0.0, flip=True), False), (Recipe(shift=0.0, flip=False), True)):
        draws = draw_epoch(100, plan_at(recipe, 0, 8), recipe, mirror, Generator().manual_seed(0))
        assert draws.order is not None and all(values is None for values in draws[1:])
    full = draw_epoch(100, plan_at(EVERYTHING, 0, 8), EVERYTHING, True, Generator().manual_seed(0), 12)
    assert full.down is None and all(values is not None for values in full[3:])


def test_order_and_flips_are_the_same_whatever_else_is_drawn():
    """So that recipes with and without an augmentation are compared on the same batches."""
    draws = [draw_epoch(100, plan_at(recipe, 0, 8), recipe, True, Generator().manual_seed(0), 12)
             for recipe in (Recipe(), EVERYTHING, Recipe(policy="autoaugment"))]
    assert all(torch.equal(draws[0].order, other.order) and torch.equal(draws[0].flip, other.flip) for other in draws[1:])


def test_shift_never_leaves_a_small_image():
    assert shift_reach(1, Recipe(shift=0.9)) == 0 and shift_reach(4, Recipe(shift=0.99)) == 3


# ---------------------------------------------------------------------------- whole batches

@pytest.mark.parametrize("ratios", [False, True])
def test_everything_at_once_is_the_parts_one_after_the_other(ratios):
    """Cut out by torchvision, flipped, RandAugment on one image, normalised, erased, mixed with the partner."""
    count, resolution, place = 26, 14, slice(4, 20)
    data = ImageSet(pixels(count, 20), np.arange(count), np.linspace(0.5, 2, count, dtype=np.float32) if ratios else None)
    [batch] = batches(data, EVERYTHING, resolution, [place])
    plan = plan_at(EVERYTHING, 0, resolution)
    proportions = torch.from_numpy(data.ratios[2:]) if ratios else None
    draws = draw_epoch(count - 2, plan, EVERYTHING, True, Generator().manual_seed(3), 20, proportions)
    singles = []
    for i in range(place.start, place.stop):
        image = torchvision.resized_crop(channels_last(data.images)[2 + draws.order[i]], *draws.crop[i].tolist(),
                                         [resolution, resolution], antialias=True)
        image = image.flip(2) if draws.flip[i] else image
        image = apply_steps(image[None].contiguous(memory_format=torch.channels_last), Steps(*(part[i:i + 1] for part in draws.policy)))
        image = ((image / 255 - MEAN.view(3, 1, 1)) / DEVIATION.view(3, 1, 1))[0]
        top, left, height, width = draws.erase[i].tolist()
        image[:, top:top + height, left:left + width] = 0
        singles.append(image)
    labels = [int(2 + draws.order[i]) for i in range(place.start, place.stop)]
    for i in range(16):
        partner = 7 - i if i < 8 else 23 - i
        expected, weight = singles[i].clone(), draws.mixup[place][i].item()
        if i < 8:
            expected = weight * singles[i] + (1 - weight) * singles[partner]
        else:
            top, left, height, width = draws.cutmix[place][i].tolist()
            expected[:, top:top + height, left:left + width] = singles[partner][:, top:top + height, left:left + width]
            weight = 1 - height * width / resolution**2
        assert torch.allclose(batch.inputs[i], expected, atol=1e-5)
        assert batch.labels[i] == labels[i] and batch.partners[i] == labels[partner]
        assert batch.weights[i].item() == pytest.approx(weight, abs=1e-6)
    assert batch.inputs.is_contiguous(memory_format=torch.channels_last) and batch.inputs.dtype == torch.float32


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_training_resumed_in_the_epoch_sees_the_same_batches(recipe):
    data = ImageSet(pixels(50, 16), np.arange(50) % 7)
    places = [slice(i, i + 10) for i in range(0, 40, 10)]
    whole = batches(data, recipe, 12, places)
    assert all(same(a, b) for a, b in zip(whole[2:], batches(data, recipe, 12, places[2:]), strict=True))
    assert all(same(a, b) for a, b in zip(whole, batches(data, recipe, 12, places, budget=0), strict=True))
    assert all(same(a, b) for a, b in zip(whole, batches(data, recipe, 12, places, ahead=True), strict=True))
    assert not torch.equal(whole[0].inputs, batches(data, recipe, 12, places[:1], seed=4)[0].inputs)
    inputs = whole[0].inputs
    assert inputs.shape == (10, 3, 12, 12) and inputs.is_contiguous(memory_format=torch.channels_last)


def test_halves_of_a_batch_are_the_batch_where_nothing_is_mixed():
    """What two processes of a distributed training see together."""
    data, recipe = ImageSet(pixels(30, 12), np.arange(30) % 7), Recipe(area=0.3, shift=0.0, policy="randaugment", magnitude=9.0)
    [whole] = batches(data, recipe, 12, [slice(0, 20)])
    first, second = batches(data, recipe, 12, [slice(0, 10), slice(10, 20)])
    assert torch.equal(whole.inputs, torch.cat([first.inputs, second.inputs]))


def test_batches_do_not_share_memory_with_the_store():
    data = ImageSet(pixels(30, 12), np.arange(30) % 7)
    before = data.images.copy()
    for recipe in RECIPES.values():
        for batch in batches(data, recipe, 12, [slice(0, 20)]):
            batch.inputs.zero_()
    assert np.array_equal(data.images, before)


# ---------------------------------------------------------------------------- reading ahead

class Broken(Images):
    """A store of which one image cannot be read."""

    def read(self, indices, out=None):
        if 3 in indices:
            raise OSError("the disk is gone")
        return super().read(indices, out)


def ahead(images, count):
    recipe = Recipe()
    plan = plan_at(recipe, 0, 8)
    draws = draw_epoch(len(images), plan, recipe, True, Generator().manual_seed(0))._replace(order=torch.arange(len(images)))
    places = [slice(i, i + 1) for i in range(count)]
    return training_batches(images, draws, plan, recipe, MEAN, DEVIATION, places, ahead=True)


def test_an_error_while_reading_ahead_reaches_the_training():
    stream = ahead(Broken(ImageSet(pixels(9, 8), np.arange(9)), np.arange(9), 8, CPU, 0), 9)
    for label in range(3):
        assert next(stream).labels.tolist() == [label]
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert not reading_threads()


def test_a_training_that_stops_early_ends_the_thread():
    class Counting(Images):
        reads = 0

        def read(self, indices, out=None):
            self.reads += 1
            return super().read(indices, out)

    images = Counting(ImageSet(pixels(50, 8), np.arange(50)), np.arange(50), 8, CPU, 0)
    stream = ahead(images, 50)
    next(stream)
    assert reading_threads()
    stream.close()
    assert not reading_threads() and images.reads <= 3  # the one that was used and at most two more
    del stream


def reading_threads(wait=2.0):
    """Threads of a reader that are left; one that is ending is waited for."""
    deadline = time.monotonic() + wait
    found = [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
    while found and time.monotonic() < deadline and not all(thread.is_alive() for thread in found):
        found = [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
    return found


# ---------------------------------------------------------------------------- a GPU

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("budget", [1e9, 0])
def test_a_gpu_makes_the_same_batches_without_being_waited_for(recipe, budget):
    """To one grey level of a resampled pixel, which an equalisation may spread; most show that nothing else differs."""
    data, places, device = ImageSet(pixels(60, 16), np.arange(60) % 7), [slice(0, 24), slice(24, 48)], torch.device("cuda")
    plan = plan_at(recipe, 0, 12)
    images = training_images(data, np.arange(2, 60), recipe, plan, device, budget)
    draws = draw_epoch(len(images), plan, recipe, True, Generator().manual_seed(3), images.side)
    mean, deviation = MEAN.to(device), DEVIATION.to(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = list(training_batches(images, draws, plan, recipe, mean, deviation, places))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(there, batches(data, recipe, 12, places), strict=True):
        difference = (ours.inputs.cpu() - theirs.inputs).abs()
        assert difference.quantile(0.9) <= 1.01 / 255 / DEVIATION.min()
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        assert ours.inputs.is_contiguous(memory_format=torch.channels_last)
