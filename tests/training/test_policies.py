"""RandAugment and AutoAugment: every operation against PIL's, one image at a time, and the frequencies of the draws."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Generator

from scalesearch.training import policies
from scalesearch.training.policies import AUTOAUGMENT, FILL, NUMBER, OPERATIONS, Steps, apply_steps, argument_of

NEAREST, GREY = Image.Resampling.NEAREST, (FILL, FILL, FILL)


def pictures(count, side, seed=0):
    """Smooth, dark, flat and noisy images: [n, side, side, 3]."""
    rng = np.random.default_rng(seed)
    waves = np.add.outer(np.arange(side), np.arange(side))[None, :, :, None] * rng.uniform(0.5, 3, (count, 1, 1, 3))
    noise = rng.normal(0, rng.choice([0, 3, 60], (count, 1, 1, 1)), (count, side, side, 3))
    images = np.clip(rng.integers(0, 200, (count, 1, 1, 3)) + waves + noise, 0, rng.integers(40, 256, (count, 1, 1, 3)))
    images[0], images[1, :, :, 0] = 77, 12
    return images.astype(np.uint8)


def applied(array, operation, value, centre=(0.5, 0.5)):
    """One operation on every image."""
    count = len(array)
    steps = Steps(torch.full((count, 1), NUMBER[operation]), torch.full((count, 1), float(value), dtype=torch.float64),
                  torch.tensor(centre, dtype=torch.float64).expand(count, 1, 2))
    return apply_steps(torch.from_numpy(array).permute(0, 3, 1, 2), steps).permute(0, 2, 3, 1).numpy()


def with_pil(image, operation, value):
    """The same by PIL's own functions."""
    side = image.size[0]
    match operation:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Posterize":
            return image.point([v & ~(2 ** (8 - int(value)) - 1) for v in range(256)] * 3)
        case "Solarize":
            return ImageOps.solarize(image, int(value))
        case "SolarizeAdd":
            return image.point([min(255, v + int(value)) if v < 128 else v for v in range(256)] * 3)
        case "Rotate":
            return image.rotate(value, NEAREST, fillcolor=GREY)
        case "ShearX":
            return image.transform(image.size, Image.Transform.AFFINE, (1, value, 0, 0, 1, 0), NEAREST, fillcolor=GREY)
        case "ShearY":
            return image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, value, 1, 0), NEAREST, fillcolor=GREY)
        case "TranslateX":
            return image.transform(image.size, Image.Transform.AFFINE, (1, 0, value * side, 0, 1, 0), NEAREST, fillcolor=GREY)
        case "TranslateY":
            return image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, value * side), NEAREST, fillcolor=GREY)
    return getattr(ImageEnhance, operation)(image).enhance(value)


@pytest.mark.parametrize("magnitude", [0, 0.7, 3, 5, 8.33, 10, 14, 25])
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "Cutout"])
def test_operations_agree_with_pil(operation, magnitude):
    array = pictures(12, 23)
    for sign in (1, -1) if operation in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY") else (1,):
        value = sign * argument_of(operation, magnitude)
        ours = applied(array.copy(), operation, value)
        theirs = np.stack([np.asarray(with_pil(Image.fromarray(image), operation, value)) for image in array])
        assert ours.dtype == np.uint8 and ours.shape == array.shape
        assert np.array_equal(ours, theirs), f"{(ours != theirs).mean():.1%} of the values differ"


@pytest.mark.parametrize(("share", "centre"), [(0.2, (0.5, 0.5)), (0.2, (0.0, 0.97)), (0.05, (0.3, 0.99)), (0.01, (0.5, 0.5)),
                                                (2.0, (0.4, 0.1))])
def test_cutout_is_a_grey_square_cut_off_at_the_border(share, centre):
    array, side, reach = pictures(3, 23), 23, int(23 * share)
    expected = array.copy()
    for row in range(side):
        for column in range(side):
            inside = [-reach <= place - int(c * side) < reach for place, c in zip((row, column), centre, strict=True)]
            if all(inside):
                expected[:, row, column] = FILL
    assert np.array_equal(applied(array, "Cutout", share, centre), expected)


def test_a_batch_of_different_operations_is_each_image_on_its_own():
    array, count = pictures(60, 16), 60
    rng = np.random.default_rng(3)
    operations = torch.from_numpy(rng.integers(-1, len(OPERATIONS), (count, 3)))
    values = torch.tensor([[argument_of(OPERATIONS[o], 7) for o in row] for row in operations], dtype=torch.float64)
    steps = Steps(operations, values, torch.from_numpy(rng.random((count, 3, 2))))
    together = apply_steps(torch.from_numpy(array).permute(0, 3, 1, 2), steps)
    assert together.is_contiguous(memory_format=torch.channels_last) and together.dtype == torch.uint8
    for i in range(count):
        image = array[i:i + 1]
        for operation, value, centre in zip(*(part[i] for part in steps), strict=True):
            if operation >= 0:
                image = applied(image, OPERATIONS[operation], value, centre.tolist())
        assert np.array_equal(together[i].permute(1, 2, 0).numpy(), image[0])
    assert {-1, *range(len(OPERATIONS))} == set(operations.unique().tolist())


def test_large_and_tiny_images():
    for side in (1, 2, 3, 65):
        array = pictures(len(OPERATIONS), side)
        steps = policies.draw_randaugment(len(array), 4, 12, Generator().manual_seed(0))
        steps.operations[:, 0] = torch.arange(len(OPERATIONS))
        assert apply_steps(torch.from_numpy(array).permute(0, 3, 1, 2), steps).shape == (len(array), 3, side, side)


def test_level_functions_are_timms():
    """timm.data.auto_augment, itself after tensorflow/tpu, on its scale up to 10."""
    levels = pytest.importorskip("timm.data.auto_augment").LEVEL_TO_ARG
    for name in ("Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY"):
        for magnitude in (0, 1.5, 4, 8.33, 9, 10):
            assert argument_of(name, magnitude) == pytest.approx(abs(levels[name](magnitude, {})[0]))
    assert argument_of("TranslateX", 10) == pytest.approx(0.45, abs=0.005)  # timm's share of the side


def test_magnitudes_beyond_full_strength():
    """EfficientNetV2-L's last stage has 25: tensorflow/tpu's level functions go on, bits and thresholds end."""
    values = {name: argument_of(name, 25) for name in OPERATIONS}
    assert values["Rotate"] == 75 and values["Posterize"] == 8 and values["Solarize"] == 256 and values["SolarizeAdd"] == 275
    assert values["Color"] == pytest.approx(4.6) and values["ShearX"] == pytest.approx(0.75)


def test_autoaugment_is_the_released_policy():
    """timm's policy v0, which moves by a share of the side as well."""
    policy = pytest.importorskip("timm.data.auto_augment").auto_augment_policy_v0({})
    theirs = tuple(tuple((op.name.removesuffix("Rel"), op.prob, op.magnitude) for op in pair) for pair in policy)
    assert theirs == AUTOAUGMENT


def test_randaugment_chooses_evenly_and_turns_either_way():
    count, magnitude = 40_000, 7.3
    steps = policies.draw_randaugment(count, 2, magnitude, Generator().manual_seed(0))
    pairs = np.bincount((16 * steps.operations[:, 0] + steps.operations[:, 1]).numpy(), minlength=256)
    assert ((pairs - count / 256) ** 2 / (count / 256)).sum() < 330  # chi square, 255 degrees of freedom, 0.1 %
    for name in OPERATIONS:
        values = steps.arguments[steps.operations == NUMBER[name]]
        assert torch.allclose(values.abs(), torch.tensor(argument_of(name, magnitude), dtype=torch.float64))
        negative = (values < 0).double().mean().item()
        signed = name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
        assert abs(negative - 0.5) < 3.5 * 0.5 / len(values) ** 0.5 if signed else negative == 0
    assert abs(steps.centres.mean().item() - 0.5) < 0.005 and 0 <= steps.centres.min() and steps.centres.max() < 1


def test_autoaugment_follows_its_probabilities():
    count = 50_000
    steps = policies.draw_autoaugment(count, Generator().manual_seed(0))
    for step in range(2):
        for operation in (-1, *range(len(OPERATIONS))):
            chances = [(pair[step][1] if operation >= 0 else 1 - pair[step][1]) / len(AUTOAUGMENT)
                       for pair in AUTOAUGMENT if operation in (-1, NUMBER[pair[step][0]])]
            expected, seen = math.fsum(chances), (steps.operations[:, step] == operation).double().mean().item()
            assert abs(seen - expected) <= 3.5 * math.sqrt(expected * (1 - expected) / count)
    both = (steps.operations == torch.tensor([NUMBER["Rotate"], NUMBER["TranslateY"]])).all(1)  # one sub-policy: 1.0 and 0.8
    assert abs(both.double().mean().item() - 0.8 / 25) < 3.5 * math.sqrt(0.032 / count)
    assert torch.allclose(steps.arguments[both].abs(), torch.tensor([21.0, 150 / 331 * 0.9], dtype=torch.float64))


def test_fractional_magnitudes_differ():
    """Progressive learning passes 8.33 and the like; only whole bits and thresholds are cut off."""
    three, third = (policies.draw_randaugment(500, 2, m, Generator().manual_seed(0)) for m in (3, 3.2))
    assert torch.equal(three.operations, third.operations)
    stays = {OPERATIONS[o] for o in three.operations[three.arguments == third.arguments].unique()}
    assert stays == {"AutoContrast", "Equalize", "Invert", "Posterize"}
